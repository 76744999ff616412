"""Two tables as a graph: ids of any kind, and no guess at what a positive is."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from torch_geometric.data import Data

from hf_ext.data.graphs import load_graph

NAN = float("nan")
NODES = {"id": ["a", "b", "c", "d"], "size": [1.0, 2.0, 3.0, 4.0], "age": [10, 20, 30, 40], "known": [1, 0, 0, 0]}
EDGES = {"source": ["a", "c"], "target": ["b", "a"], "strength": [0.5, 2.0]}


def loaded(nodes: Any = None, edges: Any = None, **options: Any) -> Data:
    """Of the tables above with other columns; None takes one away."""
    tables = []
    for table, changes in ((NODES, nodes), (EDGES, edges)):
        columns = {**table, **(changes or {})}
        tables.append(pd.DataFrame({name: values for name, values in columns.items() if values is not None}))
    return load_graph(nodes=tables[0], edges=tables[1], **({"positive_column": "known"} | options))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "frame", "dataset"])
def test_tables_of_every_form(kind: str, tmp_path: Path) -> None:
    nodes, edges = (pd.DataFrame(table).assign(note=None) for table in (NODES, EDGES))
    tables: list[Any] = [nodes, edges]
    for place, table in enumerate((nodes, edges)):
        path = tmp_path / f"{place}.{kind}"
        if kind in ("csv", "tsv"):
            table.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
        elif kind == "parquet":
            table.to_parquet(path)
        tables[place] = {"dataset": Dataset.from_pandas(table), "frame": table}.get(kind, path)
    with pytest.warns(UserWarning, match="no features: note"):
        data = load_graph(nodes=tables[0], edges=tables[1], positive_column="known", weight_column="strength")
    assert data.x.tolist() == [[1, 10], [2, 20], [3, 30], [4, 40]] and data.x.dtype == torch.float32
    assert data.edge_index.tolist() == [[0, 2, 1, 0], [1, 0, 0, 2]]
    assert data.edge_weight.tolist() == [0.5, 2, 0.5, 2]
    assert data.positive_mask.tolist() == [True, False, False, False] and "y" not in data
    assert data.node_ids == list("abcd") and data.feature_names == ["size", "age"]


def test_names_of_columns_and_directed_edges() -> None:
    nodes = pd.DataFrame({"key": [7, 8], "f": [0.0, 1.0], "g": [1, 1]})
    edges = pd.DataFrame({"from": [8, 8], "to": [7, 7]})
    options: dict[str, Any] = {"id_column": "key", "source_column": "from", "target_column": "to"}
    data = load_graph(nodes=nodes, edges=edges, feature_columns="f", undirected=False, **options)
    assert data.edge_index.tolist() == [[1, 1], [0, 0]] and data.x.tolist() == [[0], [1]] and data.node_ids == [7, 8]
    both = load_graph(nodes=nodes, edges=edges, feature_columns=["g", "f"], **options)
    assert both.edge_index.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]] and both.feature_names == ["g", "f"]


def test_a_reverse_is_added_only_where_there_is_none() -> None:
    data = loaded(
        edges={"source": list("abcc"), "target": list("baba"), "strength": [1, 2, 3, 4.0]}, weight_column="strength"
    )
    pairs = dict(zip(map(tuple, data.edge_index.T.tolist()), data.edge_weight.tolist(), strict=True))
    assert pairs == {(0, 1): 1, (1, 0): 2, (2, 1): 3, (1, 2): 3, (2, 0): 4, (0, 2): 4}


@pytest.mark.parametrize(
    ("ids", "sources"),
    [
        ([1, 2, 3, 4], [1, 3]),
        (["1", "2", "3", "4"], [1, 3]),
        ([1, 2, 3, 4], ["1", "3"]),
        (["1", "2", "3", "x"], [1, 3]),
        (["1", "02", "3", "2"], ["1", "3"]),
        ([1, 2, 3, 4], [1.0, 3.0]),
        ([2**62 + 1, 2**62, 2**62 + 3, 5], [2**62 + 1, 2**62 + 3]),
        (["9" * 30, "b", "8" * 30, "d"], ["9" * 30, "8" * 30]),
        (["ü", "b", "日本", "d"], ["ü", "日本"]),
    ],
)
def test_ids_of_any_kind(ids: list[Any], sources: list[Any]) -> None:
    data = loaded({"id": ids}, {"source": sources, "target": [ids[1], ids[0]]}, undirected=False)
    assert data.edge_index.tolist() == [[0, 2], [1, 0]]
    assert list(map(str, data.node_ids)) == list(map(str, ids))


@pytest.mark.parametrize("column", ["source", "target"])
def test_ids_that_no_node_has(column: str) -> None:
    with pytest.raises(ValueError, match=f"{column}: found 'z' in row 1 of edges .*1 such.*such as 'a', 'b', 'c'"):
        loaded(edges={column: ["a", "z"]})
    with pytest.raises(ValueError, match=f"{column}: found (None|nan) in row 0"):
        loaded(edges={column: [None, "a"]})
    with pytest.raises(ValueError, match=f"{column}: found '1' in row 0 of edges .*2 such"):
        loaded(edges={column: [1, 2]})
    with pytest.raises(ValueError, match=f"{column}: found 0.5 in row 0"):  # weights in the place of ids
        loaded(edges={column: [0.5, 2.0], "strength": ["a", "b"]})


def test_a_node_has_one_row() -> None:
    with pytest.raises(ValueError, match=r"id: found 'a' in row 2 of nodes .*1 such.*row of its own"):
        loaded({"id": list("abad")})
    with pytest.raises(ValueError, match="id: found"):
        loaded({"id": ["a", "b", None, "d"]})
    with pytest.raises(ValueError, match="nodes: found no rows"):
        load_graph(nodes=pd.DataFrame({"id": [], "f": []}), edges=pd.DataFrame(EDGES))


def test_without_edges_and_with_isolated_nodes(tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text("source,target,strength\n")
    for edges in (pd.DataFrame({name: [] for name in EDGES}), tmp_path / "edges.csv"):
        data = load_graph(nodes=pd.DataFrame(NODES), edges=edges, weight_column="strength", positive_column="known")
        assert data.edge_index.shape == (2, 0) and data.edge_weight.shape == (0,) and data.num_nodes == 4


def test_loops_are_left_out_and_duplicates_stay() -> None:
    edges = {"source": list("aab"), "target": list("abb"), "strength": [1.0, 2, 3]}
    with pytest.warns(UserWarning, match="2 self-loops"):
        data = loaded(edges=edges, weight_column="strength", undirected=False)
    assert data.edge_index.tolist() == [[0], [1]] and data.edge_weight.tolist() == [2]
    twice = loaded(edges={"source": list("aa"), "target": list("bb")})
    assert twice.edge_index.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    "column",
    [
        [1, 0, 0, 1],
        [True, False, False, True],
        [1.0, 0.0, np.nan, 1.0],
        [1.0, np.nan, np.nan, 1.0],
        ["1", "0", "0", "1"],
        ["True", "false", " FALSE ", "TRUE"],
        ["1.0", None, "", "1"],
        [True, None, False, True],
        [True, 0, None, 1],
        pd.array([1, 0, None, 1], dtype="Int64"),
        pd.array([True, False, None, True], dtype="boolean"),
        pd.Categorical([1, 0, 0, 1]),
    ],
)
def test_what_is_a_positive(column: Any) -> None:
    assert loaded({"known": column}).positive_mask.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    "column",
    [
        [1, -1, -1, 1],
        [1, 2, 2, 1],
        [0.9, 0.1, 0.0, 1.0],
        ["yes", "no", "no", "yes"],
        ["positive", "unlabeled", "unlabeled", "positive"],
        ["P", "U", "U", "P"],
        ["1", "0", "nan", "1"],
        ["fraud", None, None, "fraud"],
        [[1], [0], [0], [1]],
        [float("inf"), 0, 0, 1],
        [b"1", b"0", b"0", b"1"],
        pd.to_datetime(["2020", None, None, "2021"]),
    ],
)
def test_what_cannot_be_told_to_be_a_positive(column: Any) -> None:
    with pytest.raises(ValueError, match=r"known: found .* in row .* of nodes .* allowed are 1 or true for known"):
        loaded({"known": column})


def test_no_positives_and_nothing_else() -> None:
    with pytest.raises(ValueError, match="positive_mask: found no positive"):
        loaded({"known": [0, 0, None, False]})
    with pytest.raises(ValueError, match="positive_mask: found no unlabelled"):
        loaded({"known": [1, 1, 1, 1]})


@pytest.mark.parametrize(
    ("column", "classes", "names"),
    [
        ([3, 0, -1, 2], [3, 0, -1, 2], None),
        ([3.0, 0.0, np.nan, 2.0], [3, 0, -1, 2], None),
        (["3", "0", None, "2"], [3, 0, -1, 2], None),
        ([True, False, None, True], [1, 0, -1, 1], None),
        (["True", "false", None, "True"], [1, 0, -1, 1], None),
        (["red", "blue", None, "red"], [1, 0, -1, 1], ["blue", "red"]),
        ([None] * 4, [-1] * 4, None),
    ],
)
def test_classes(column: list[Any], classes: list[int], names: list[str] | None) -> None:
    data = loaded({"kind": column}, label_column="kind", positive_column=None)
    assert data.y.tolist() == classes and data.feature_names == ["size", "age", "known"]
    assert ("class_names" in data) == (names is not None)
    if names is not None:
        assert data.class_names == names


@pytest.mark.parametrize("column", [[0.5, 1, 2, 3], [-2, 0, 0, 0], [2**20, 0, 0, 0], ["red", 1, 2, 3]])
def test_classes_that_are_none(column: list[Any]) -> None:
    with pytest.raises(ValueError, match="kind: found"):
        loaded({"kind": column}, label_column="kind")


def test_classes_are_the_truth_only_where_they_fit_the_positives() -> None:
    assert loaded({"kind": [1, 0, -1, 1]}, label_column="kind").pu_y.tolist() == [1, 0, -1, 1]
    for column in ([2, 0, 0, 1], ["t", "f", "f", "t"], [None] * 4):
        assert "pu_y" not in loaded({"kind": column}, label_column="kind")
    with pytest.warns(UserWarning, match="1 known positives have the class 0"):
        assert "pu_y" not in loaded({"kind": [0, 1, 1, 0]}, label_column="kind")


def test_features_that_are_lists_or_of_many_kinds(tmp_path: Path) -> None:
    vectors = {"size": None, "age": None, "vector": [[1.0, 2], [3, 4], [5, 6], [7, 8]]}
    data = loaded(vectors)
    assert data.x.tolist() == vectors["vector"] and data.feature_names == ["vector[0]", "vector[1]"]
    table = pd.DataFrame(NODES).assign(vector=vectors["vector"], flag=[True, False, True, False])
    table.to_parquet(tmp_path / "nodes.parquet")
    data = load_graph(nodes=tmp_path / "nodes.parquet", edges=pd.DataFrame(EDGES), positive_column="known")
    assert data.feature_names == ["size", "age", "vector[0]", "vector[1]", "flag"] and data.x.shape == (4, 5)
    assert loaded(vectors, feature_columns="vector").x.shape == (4, 2)
    texts = loaded({"age": ["10", " 20", "3e1", "40.5"]})
    assert texts.x[:, 1].tolist() == [10, 20, 30, 40.5]


def test_what_sounds_like_a_class_is_told_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="feature_columns: found Label among them"):
        loaded({"Label": [1, 1, 0, 0]})
    pd.DataFrame(NODES).to_csv(tmp_path / "nodes.csv")  # with the numbers of rows
    with pytest.warns(UserWarning, match="feature_columns: found nan among them"):
        load_graph(nodes=tmp_path / "nodes.csv", edges=pd.DataFrame(EDGES))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded({"Label": [1, 1, 0, 0]}, feature_columns=["Label"])
        loaded({"label": [1, 1, 0, 0]}, label_column="label")


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"nodes": {"age": [1, None, 3, 4]}},
        "age: found nan in row 1 of nodes .* allowed are finite numbers as features",
    ),
    ({"nodes": {"age": [1, 2, 3, float("inf")]}}, "age: found inf in row 3"),
    ({"nodes": {"age": [1, 2, 3, 1e300]}}, r"age: found 1e\+300 in row 3"),
    ({"nodes": {"age": ["1", "2", "nan", "4"]}}, "age: found 'nan' in row 2"),
    ({"nodes": {"age": ["1", "2", "n/a", "4"]}}, "age: found 'n/a' in row 2"),
    ({"nodes": {"age": [[1, 2], [3, NAN], [5, 6], [7, 8]]}}, r"age\[1\]: found nan in row 1 of nodes .*1 such"),
    ({"nodes": {"age": [[1], [2], [3, 4], [5]]}}, "age: found lists of shapes"),
    ({"nodes": {"age": [[1], [2], [3], None]}}, "age: found lists of shapes"),
    (
        {"nodes": {"age": None, "size": list("wxyz")}},
        r"feature_columns: found no column of numbers in nodes \(id, size",
    ),
    ({"nodes": {"age": list("wxyz")}, "feature_columns": ["age"]}, "age: found values that are no numbers"),
    ({"nodes": {"age": [1j, 2, 3, 4]}, "feature_columns": ["age"]}, "age: found values that are no numbers"),
    (
        {"feature_columns": ["weight"]},
        "feature_columns: found 'weight', of which there is none, .* id, size, age, known",
    ),
    ({"feature_columns": ["known"]}, "feature_columns: found 'known', which is the column of something else"),
    ({"feature_columns": []}, r"feature_columns: found \[\]"),
    ({"feature_columns": ["age", "age"]}, "feature_columns: found .*different names"),
    ({"feature_columns": 3}, "feature_columns: found 3"),
    ({"edges": {"strength": [1, -1.0]}, "weight_column": "strength"}, "strength: found -1.0 in row 1 of edges"),
    ({"edges": {"strength": [None, 1.0]}, "weight_column": "strength"}, "strength: found nan in row 0 of edges"),
    ({"edges": {"strength": ["a", "b"]}, "weight_column": "strength"}, "strength: found weights that are no numbers"),
    ({"edges": {"strength": [[1], [2, 3]]}, "weight_column": "strength"}, "strength: found lists of shapes"),
    ({"edges": {"strength": [[1, 2], [2, 3]]}, "weight_column": "strength"}, "strength: found weights"),
    ({"id_column": "key"}, "id_column: found 'key', of which there is none, allowed are id, size, age, known"),
    ({"source_column": "from"}, "source_column: found 'from', of which there is none, allowed are source"),
    ({"target_column": "to"}, "target_column: found 'to'"),
    ({"weight_column": "w"}, "weight_column: found 'w'"),
    ({"positive_column": "p"}, "positive_column: found 'p'"),
    ({"label_column": "known"}, "label_column: found 'known', which is the positive_column too"),
    ({"target_column": "source"}, "target_column: found 'source', which is the source_column too"),
    ({"positive_column": 3}, "positive_column: found 3"),
    ({"undirected": "no"}, "undirected: found 'no', allowed are True, False"),
    ({"name": "digits-graph"}, "edges: found one beside the name 'digits-graph'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded(**options)


@pytest.mark.parametrize("argument", ["nodes", "edges"])
def test_tables_that_are_none(argument: str, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bytes.csv").write_bytes(b"id,\xff\xfe\n1,2\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and so on")
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    (tmp_path / "twice.csv").write_text("id,f,f\n1,2,3\n")
    for table, found in (
        (None, "None"),
        (3, "int"),
        (tmp_path / "none.csv", ".*no file"),
        (tmp_path, ".*no file"),
        (tmp_path / "empty.csv", ".*no table"),
        (tmp_path / "bytes.csv", ".*no text in UTF-8"),
        (tmp_path / "broken.parquet", ".*cannot be read"),
        (tmp_path / "table.xlsx", ".*allowed are a csv, tsv or parquet file"),
        (tmp_path / "twice.csv", "several columns called f"),
    ):
        tables = {"nodes": pd.DataFrame(NODES), "edges": pd.DataFrame(EDGES)} | {argument: table}
        with pytest.raises(ValueError, match=f"{argument}: found {found}"):
            load_graph(**tables)  # type: ignore[arg-type]


def test_tables_in_each_other_s_place() -> None:
    with pytest.raises(ValueError, match="id_column: found 'id', of which there is none, allowed are source, target"):
        load_graph(nodes=pd.DataFrame(EDGES), edges=pd.DataFrame(NODES))


def test_the_user_s_tables_stay_as_they_are() -> None:
    nodes, edges = pd.DataFrame(NODES, index=[4, 3, 2, 1]), pd.DataFrame(EDGES, index=[9, 9])
    copies = nodes.copy(), edges.copy()
    data = load_graph(nodes=nodes, edges=edges, positive_column="known")
    assert data.positive_mask.tolist() == [True, False, False, False]
    pd.testing.assert_frame_equal(nodes, copies[0])
    pd.testing.assert_frame_equal(edges, copies[1])
