"""Graphs in the forms in which they are passed around; what is no graph is refused, and no pickle runs code."""

import os
import pickle
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from datasets import Dataset, DatasetDict
from torch_geometric.data import Data

from hf_ext.data.graphs import digits_graph, load_graph

X = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]], dtype=np.float32)
Y = np.array([0, 1, 0, 1, 1])
PAIRS = np.array([[0, 1, 2, 3], [1, 2, 3, 4]])
BOTH = {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2), (3, 4), (4, 3)}


def check(data: Data, classes: Any = Y) -> None:
    assert torch.equal(data.x, torch.from_numpy(X))
    edges = list(map(tuple, data.edge_index.T.tolist()))
    assert set(edges) == BOTH and len(edges) == len(BOTH)
    assert data.y.tolist() == list(classes) and data.y.dtype == data.edge_index.dtype == torch.int64


def test_the_embedded_one() -> None:
    data = load_graph("digits-graph")
    assert torch.equal(data.edge_index, digits_graph().edge_index)


def test_npz_of_both_kinds(tmp_path: Path) -> None:
    masks = {f"{part}_masks": np.eye(5, dtype=bool)[:2] for part in ("train", "val", "test")}
    ours: dict[str, Any] = {"x": X.astype(np.uint8), "edge_index": PAIRS.astype(np.int32), "y": Y.astype(np.int32)}
    np.savez(tmp_path / "ours.npz", **ours, **masks)
    np.savez_compressed(tmp_path / "theirs.npz", node_features=X, edges=PAIRS.T, node_labels=Y, **masks)
    for name in ("ours", "theirs"):
        data = load_graph(tmp_path / f"{name}.npz")
        check(data)
        assert torch.equal(data.train_mask, torch.from_numpy(np.eye(5, dtype=bool)[:2].T))
    np.savez(tmp_path / "one.npz", x=X, edge_index=PAIRS, train_masks=np.eye(5, dtype=bool)[:1])
    data = load_graph(str(tmp_path / "one.npz"), undirected=False)
    assert data.train_mask.shape == (5,) and "y" not in data and data.edge_index.tolist() == PAIRS.tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "name: found x in .*allowed are x, edge_index, y or node_features"),
        ({}, "name: found nothing in"),
        ({"x": X.astype(str), "edge_index": PAIRS}, "x: found <U"),
        ({"x": X, "edge_index": PAIRS + 0.5}, "edge_index: found float64"),
        ({"x": X, "edge_index": PAIRS.T}, r"edge_index: found torch.int64 of shape \(4, 2\)"),
        ({"x": X, "edge_index": PAIRS + 1}, "edge_index: found node 5 at edge 3"),
        ({"x": X * np.nan, "edge_index": PAIRS}, "x: found nan at node 0"),
        ({"x": X.astype(np.float64) * 1e300, "edge_index": PAIRS}, "x: found inf"),
        ({"x": X[0], "edge_index": PAIRS}, "x: found torch.float32 of shape"),
        ({"x": X, "edge_index": PAIRS, "y": Y[:3]}, "y: found torch.int64 of shape"),
        ({"x": X, "edge_index": PAIRS, "y": Y + 0.0}, "y: found float64"),
        ({"x": np.array([object()]), "edge_index": PAIRS}, "name: found .* which cannot be read"),
    ],
)
def test_npz_that_is_no_graph(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "graph.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_graph(tmp_path / "graph.npz")


def test_files_that_are_broken(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", x=X, edge_index=PAIRS)
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.npz").write_text("x")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "one.npy", X)
    (tmp_path / "array.npz").write_bytes((tmp_path / "one.npy").read_bytes())
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("x.npy", b"nothing")
    for name in ("half", "text", "empty", "array", "zip"):
        with pytest.raises(ValueError, match=r"name: found .*npz"):
            load_graph(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=r"name: found '.*none.npz', no file"):
        load_graph("data/none.npz")


def geom_gcn(folder: Path, features: list[str], *, edges: str = "0\t1\n1\t2\n2\t3\n3\t4\n3\t4\n") -> Path:
    rows = "".join(f"{node}\t{row}\t{y}\n" for node, row, y in zip(range(5), features, Y, strict=True))
    (folder / "out1_node_feature_label.txt").write_text("node_id\tfeature\tlabel\n" + rows)
    (folder / "out1_graph_edges.txt").write_text("node_id\tnode_id\n" + edges)
    return folder


def test_geom_gcn(tmp_path: Path) -> None:
    values = [",".join(str(int(value)) for value in row) for row in X]
    check(load_graph(geom_gcn(tmp_path, values)))
    places = [",".join(map(str, np.flatnonzero(row))) for row in X]
    data = load_graph(geom_gcn(tmp_path, places), undirected=False)
    assert torch.equal(data.x, torch.from_numpy(X)) and data.edge_index.tolist() == PAIRS.tolist()


@pytest.mark.parametrize(
    ("features", "edges", "message"),
    [
        (["1,0"] * 5, "0\t7\n", "target: found 7 in row 0 of edges"),
        (["1,0"] * 5, "0 1\n", "name: found 1 columns in row 2 of .*out1_graph_edges.txt"),
        (["1,0"] * 5, "", "name: found no rows in"),
        (["1,x"] * 5, "0\t1\n", "name: found features in"),
        (["1", "-2,1", "1", "1", "1"], "0\t1\n", "name: found features in"),
        (["1,nan"] * 5, "0\t1\n", "features.1.: found nan in row 0 of nodes"),
    ],
)
def test_geom_gcn_that_is_none(features: list[str], edges: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_graph(geom_gcn(tmp_path, features, edges=edges))


def planetoid(folder: Path, protocol: int = 2, **changes: Any) -> Path:
    """The graph above: nodes 0 to 2 are known, 4 and 3 (in this order) are those of the test."""
    onehot = np.eye(2, dtype=np.int32)[Y]
    graph = defaultdict(list, {0: [1], 1: [0, 2, 2], 2: [1, 3], 3: [2, 4], 4: [3]})
    parts = {
        "allx": scipy.sparse.csr_matrix(X[:3]),
        "tx": scipy.sparse.csr_matrix(X[[4, 3]]),
        "ally": onehot[:3],
        "ty": onehot[[4, 3]],
        "graph": graph,
        "test.index": "4\n3\n",
    } | changes
    for name, part in parts.items():
        path = folder / f"ind.tiny.{name}"
        if isinstance(part, str | bytes):
            path.write_bytes(part if isinstance(part, bytes) else part.encode())
        else:
            path.write_bytes(pickle.dumps(part, protocol=protocol))
    return folder


@pytest.mark.parametrize("protocol", [2, 4])
def test_planetoid(protocol: int, tmp_path: Path) -> None:
    check(load_graph(planetoid(tmp_path, protocol)))


def test_pickles_of_python_2(tmp_path: Path) -> None:
    """As Python 2 wrote them: with names of modules that are no more, bytes as text, and objects rebuilt."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I%d\nt"
    array += b"cnumpy\ndtype\n(S'%s'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'%s'\ntb"

    def pickled(values: np.ndarray) -> bytes:
        content = "".join(f"\\x{byte:02x}" for byte in values.tobytes()).encode()
        return array % (values.size, values.dtype.str[1:].encode(), content)

    matrix = scipy.sparse.csr_matrix(X[:3])
    sparse = b"ccopy_reg\n_reconstructor\n(cscipy.sparse.csr\ncsr_matrix\nc__builtin__\nobject\nNtR"
    sparse += b"(dS'_shape'\n(I3\nI3\ntsS'maxprint'\nI50\ns"
    for name in ("data", "indices", "indptr"):
        sparse += b"S'" + name.encode() + b"'\n" + pickled(getattr(matrix, name)) + b"s"
    graph = b"ccollections\ndefaultdict\n(c__builtin__\nlist\ntRI0\n(lI1\nasI1\n(lI2\nasI2\n(lI3\nasI3\n(lI4\nas."
    check(load_graph(planetoid(tmp_path, allx=sparse + b"b.", graph=graph)))


def test_nodes_that_planetoid_has_no_features_of(tmp_path: Path) -> None:
    graph = {0: [1], 1: [2], 2: [3], 3: [4], 4: [], 5: []}
    data = load_graph(planetoid(tmp_path, graph=graph, **{"test.index": "5\n3\n"}))
    assert data.x[4].tolist() == [0, 0, 0] and data.y.tolist() == [0, 1, 0, 1, -1, 1]
    assert data.x[5].tolist() == X[4].tolist()
    unlabelled = load_graph(planetoid(tmp_path, ally=np.array([[1, 0], [0, 0], [1, 0]])))
    assert unlabelled.y.tolist() == [0, -1, 0, 1, 1]


class Payload:
    """What unpickling it would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_no_pickle_runs_code(tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    for name in ("graph", "allx", "ty"):
        folder = tmp_path / name
        folder.mkdir()
        for payload in (Payload(opened), np.array([Payload(opened)]), {0: [Payload(opened)]}):
            with pytest.raises(ValueError, match=rf"ind.tiny.{name}', which cannot be read \(it asks for posix.mkdir"):
                load_graph(planetoid(folder, **{name: payload}))
    for module, call in (("builtins", "eval"), ("os", "system"), ("numpy", "load"), ("builtins", "getattr")):
        hostile = f"c{module}\n{call}\n(S'1'\ntR.".encode()
        with pytest.raises(ValueError, match=f"it asks for {module}.{call}"):
            load_graph(planetoid(tmp_path, graph=hostile))
    assert not opened.exists()


def test_sparse_matrices_do_not_write_where_they_like(tmp_path: Path) -> None:
    for indices, pointers in (([0, 2**20], [0, 1, 2, 2]), ([0, -5], [0, 1, 2, 2]), ([0, 1], [0, 2, 1, 2])):
        matrix = scipy.sparse.csr_matrix(X[:3])
        matrix.data = np.ones(2, dtype=np.float32)
        matrix.indices, matrix.indptr = np.array(indices, dtype=np.int32), np.array(pointers, dtype=np.int32)
        matrix.check_format = list  # an instance's own, which a check through the instance would call
        with pytest.raises(ValueError, match=r"ind.tiny.allx', which cannot be read"):
            load_graph(planetoid(tmp_path, allx=matrix))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph": b"nothing"}, "ind.tiny.graph', which cannot be read"),
        ({"graph": b""}, "ind.tiny.graph', which cannot be read"),
        ({"graph": [1, 2]}, "files of 'tiny' that do not fit each other"),
        ({"graph": {0: 1}}, "files of 'tiny' that do not fit each other"),
        ({"graph": {"a": ["b"]}}, "files of 'tiny' that do not fit each other"),
        ({"graph": {0: [1], 10**9: [0]}}, "files of 'tiny' that do not fit each other"),
        ({"graph": {0: [9]}}, "edge_index: found node 9"),
        ({"graph": {0: [-1]}}, "edge_index: found node -1"),
        ({"test.index": "3\n3\n"}, "files of 'tiny' that do not fit each other"),
        ({"test.index": "a\n"}, "files of 'tiny' that do not fit each other"),
        ({"test.index": "-1\n3\n"}, "files of 'tiny' that do not fit each other"),
        ({"tx": X[:2, :2]}, "name: found float32 of shape"),
        ({"ally": np.array(["a", "b", "c"])}, "name: found <U1 of shape"),
        ({"ally": np.eye(2)}, "files of 'tiny' that do not fit each other"),
    ],
)
def test_planetoid_that_is_none(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_graph(planetoid(tmp_path, **changes))


def test_planetoid_with_files_missing_or_too_many(tmp_path: Path) -> None:
    planetoid(tmp_path)
    (tmp_path / "ind.tiny.ty").unlink()
    with pytest.raises(ValueError, match=r"name: found no ind\.tiny\.ty in"):
        load_graph(tmp_path)
    (tmp_path / "ind.other.graph").write_bytes(b"")
    with pytest.raises(ValueError, match="name: found the graphs other, tiny in"):
        load_graph(tmp_path)


def test_rows_of_a_data_set(tmp_path: Path) -> None:
    row = {"edge_index": PAIRS.tolist(), "y": Y.tolist()}
    for features in ("x", "node_feat"):
        check(load_graph({**row, features: X.tolist()}))
    rows = Dataset.from_list([{**row, "node_feat": X.tolist(), "positive_mask": [True] + [False] * 4, "other": 3}])
    for data in (rows, DatasetDict({"train": rows}), rows.with_format("torch")):
        check(load_graph(data))
        assert load_graph(data).positive_mask.tolist() == [True] + [False] * 4
    rows.to_parquet(str(tmp_path / "graph.parquet"))
    check(load_graph(str(tmp_path / "graph.parquet")))
    rows.save_to_disk(str(tmp_path / "saved"))
    check(load_graph(tmp_path / "saved"))
    none = load_graph({"edge_index": [[], []], "x": X.tolist(), "edge_weight": []})
    assert none.edge_index.shape == (2, 0) and none.edge_weight.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "name: found a row with edge_index, x, y, allowed is one with edge_index and x"),
        ({"edge_index": None}, "name: found a row with"),
        ({"edge_index": [[0, 1], [1]]}, "edge_index: found lists of different lengths"),
        ({"edge_index": [[0.5], [1]]}, "edge_index: found float64"),
        ({"edge_index": PAIRS.T.tolist()}, "edge_index: found torch.int64 of shape"),
        ({"x": [[1.0], [2, 3]]}, "x: found lists of different lengths"),
        ({"x": [["a"]] * 5}, "x: found <U1"),
        ({"y": [1]}, "y: found torch.int64 of shape"),
        ({"edge_weight": [-1.0, 1, 1, 1]}, "edge_weight: found -1"),
        ({"positive_mask": [1, 0, 0, 0, 0]}, "positive_mask: found int64 of shape"),
        ({"positive_mask": [False] * 5}, "positive_mask: found no positive"),
        ({"positive_mask": [True, True, False, False, False], "pu_y": [0, 1, 0, 0, 0]}, "pu_y: found 0 for 1 known"),
    ],
)
def test_rows_that_are_no_graph(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_graph({"edge_index": PAIRS.tolist(), "x": X.tolist(), "y": Y.tolist()} | change)


def test_names_of_nothing(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"x": [[1.0]], "edge_index": [[0], [0]]}] * 2)
    (tmp_path / "graph.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    names: list[tuple[Any, str]] = [
        (rows, "name: found 2 rows, allowed is one"),
        (DatasetDict({"a": rows, "b": rows}), "name: found the splits a, b"),
        (Data(), "name: found a Data, which is a graph already"),
        (3, "name: found int"),
        ("nothing", "name: found 'nothing', .*of graphs: digits-graph, npz"),
        (tmp_path / "graph.txt", "name: found the file"),
        (tmp_path / "empty", "name: found no data in"),
        (None, "nodes: found None, allowed are tables"),
    ]
    for name, message in names:
        with pytest.raises(ValueError, match=message):
            load_graph(name)
