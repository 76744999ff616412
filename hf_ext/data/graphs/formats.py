"""Graphs in the forms in which they are passed around: npz files, folders of geom-gcn and of planetoid, rows."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray

from hf_ext.data.graphs.geometric import Data
from hf_ext.data.graphs.pickles import read_pickle
from hf_ext.data.graphs.tables import Columns, graph_of_tables

_GEOM_NODES, _GEOM_EDGES = "out1_node_feature_label.txt", "out1_graph_edges.txt"
_MASKS = ("train", "val", "test")
#: names in npz files, of features, edges and classes: ours and those of heterophilous-graphs
_NPZ = (("x", "edge_index", "y"), ("node_features", "edges", "node_labels"))
#: what a row may have besides features
_ROW = ("edge_weight", "y", "pu_y", "positive_mask", "held_out_mask", "unlabeled_mask")


def read_npz(path: Path) -> Data:
    """A file with `x`, `edge_index` and `y`, or `node_features`, `edges` and `node_labels` (which are optional).

    `train_masks`, `val_masks` and `test_masks`, `[S, N]`, become `train_mask` and so on, `[N]`, or `[N, S]` of several
    splits, as in PyTorch Geometric. Nothing is unpickled.

    Raises:
        ValueError: a file that cannot be read or has other names, or values of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"name: found {str(path)!r}, which cannot be read ({error}), allowed is npz") from error
    form = next((names for names in _NPZ if set(names[:2]) <= set(arrays)), None)
    if form is None:
        allowed = " or ".join(", ".join(names) for names in _NPZ)
        raise ValueError(f"name: found {', '.join(arrays) or 'nothing'} in {str(path)!r}, allowed are {allowed}")
    features, edges, classes = form
    pairs = arrays[edges].T if edges == "edges" else arrays[edges]
    data = Data(x=_floats(features, arrays[features]), edge_index=_integers(edges, pairs))
    if classes in arrays:
        data.y = _integers(classes, arrays[classes])
    for part in _MASKS:
        masks = arrays.get(f"{part}_masks")
        if masks is not None and masks.ndim == 2 and masks.dtype == bool:
            data[f"{part}_mask"] = torch.from_numpy(masks[0] if len(masks) == 1 else masks.T.copy())
    return data


def is_geom_gcn(folder: Path) -> bool:
    """Whether a folder has geom-gcn's files."""
    return (folder / _GEOM_NODES).is_file() and (folder / _GEOM_EDGES).is_file()


def read_geom_gcn(folder: Path) -> Data:
    """geom-gcn's two text files; features are lists of values, or (of different lengths) of the places of ones.

    Edges that are there twice count once, as in PyTorch Geometric.

    Raises:
        ValueError: lines that are none of such a file, and all that `graph_of_tables` refuses.
    """
    ids, features, classes = zip(*_lines(folder / _GEOM_NODES, 3), strict=True)
    sources, targets = zip(*_lines(folder / _GEOM_EDGES, 2), strict=True)
    try:
        values = [np.array(text.split(","), dtype=np.float32) for text in features]
        if len({len(row) for row in values}) > 1:
            values = list(_ones([row.astype(np.int64) for row in values]))
    except (ValueError, IndexError) as error:
        raise ValueError(f"name: found features in {_GEOM_NODES} that are no numbers ({error})") from error
    nodes = pd.DataFrame({"id": ids, "features": values, "label": classes})
    edges = pd.DataFrame({"source": sources, "target": targets})
    data = graph_of_tables(nodes, edges, Columns(label="label"))
    data.edge_index = data.edge_index.unique(dim=1)
    return data


def _lines(path: Path, columns: int) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"name: found no rows in {str(path)!r}, allowed are rows below a header")
    for number, row in enumerate(rows, start=2):
        if len(row) != columns:
            raise ValueError(
                f"name: found {len(row)} columns in row {number} of {str(path)!r}, allowed are {columns}, by tabs"
            )
    return rows


def _ones(places: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    if min(row.min() for row in places) < 0:
        raise ValueError("a place below 0")
    dense = np.zeros((len(places), max(row.max() for row in places) + 1), dtype=np.float32)
    for row, ones in zip(dense, places, strict=True):
        row[ones] = 1
    return dense


def planetoid_name(folder: Path) -> str | None:
    """NAME, if a folder has planetoid's `ind.NAME.graph`.

    Raises:
        ValueError: several of them.
    """
    names = sorted(path.name.removeprefix("ind.").removesuffix(".graph") for path in folder.glob("ind.*.graph"))
    if len(names) > 1:
        raise ValueError(f"name: found the graphs {', '.join(names)} in {str(folder)!r}, allowed is one in a folder")
    return names[0] if names else None


def read_planetoid(folder: Path, name: str) -> Data:
    """planetoid's `ind.NAME.*`; edges that are there twice count once.

    Nodes that are in no file of features, such as 15 of CiteSeer's, have zeros, and -1 as their class.

    Raises:
        ValueError: files that are missing, broken or hold something else than arrays, or do not fit each other.
    """
    path = {part: folder / f"ind.{name}.{part}" for part in ("allx", "tx", "ally", "ty", "graph", "test.index")}
    for part in path.values():
        if not part.is_file():
            raise ValueError(f"name: found no {part.name} in {str(folder)!r}, allowed is a folder with it")
    x, y, graph = (_joined(path, "x"), _joined(path, "y"), read_pickle(path["graph"]))
    try:
        tested = np.array(path["test.index"].read_text(encoding="utf-8").split(), dtype=np.int64)
        pairs = np.array([(node, other) for node, others in graph.items() for other in others], dtype=np.int64)
        trained = len(x) - len(tested)
        places = np.concatenate([np.arange(trained), tested])
        size = int(max(places.max(), *graph, 0)) + 1
        whole = places.min() == 0 and len(np.unique(places)) == len(places) == len(y) and trained >= 0
        if not whole or size > 2 * len(places) + 1:
            raise ValueError(f"{len(tested)} test nodes, {len(x)} rows of features, {len(y)} classes, {size} nodes")
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"name: found files of {name!r} that do not fit each other ({error})") from error
    features, classes = np.zeros((size, x.shape[1]), dtype=np.float32), np.full(size, -1)
    features[places] = x
    classes[places] = np.where(y.any(axis=1), y.argmax(axis=1), -1)
    edge_index = torch.from_numpy(pairs.reshape(-1, 2).T.copy()).unique(dim=1)
    return Data(x=torch.from_numpy(features), edge_index=edge_index, y=torch.from_numpy(classes))


def _joined(path: dict[str, Path], letter: str) -> NDArray[Any]:
    """Rows of training and test nodes, in the order of the files."""
    parts = [np.asarray(read_pickle(path[part])) for part in (f"all{letter}", f"t{letter}")]
    for part in parts:
        if part.ndim != 2 or part.dtype.kind not in "biuf" or part.shape[1] != parts[0].shape[1]:
            raise ValueError(
                f"name: found {part.dtype} of shape {part.shape} in {path[f'all{letter}'].name} or its like, allowed "
                "are numbers in two arrays of as many columns"
            )
    return np.concatenate(parts)


def read_row(row: Mapping[str, Any]) -> Data:
    """A row with `edge_index`, `[2, M]`, `x` or `node_feat`, `[N, F]`, and optionally weights, classes and masks.

    Raises:
        ValueError: a row without edges or features, or values of another kind.
    """
    features = "x" if row.get("x") is not None else "node_feat"
    for name in ("edge_index", features):
        if row.get(name) is None:
            raise ValueError(
                f"name: found a row with {', '.join(row)}, allowed is one with edge_index and x (or node_feat)"
            )
    edges = _array("edge_index", row["edge_index"])
    data = Data(
        x=_floats(features, _array(features, row[features])),
        edge_index=_integers("edge_index", edges if edges.size else edges.reshape(2, 0).astype(np.int64)),
    )
    for name in _ROW:
        if row.get(name) is not None:
            values = _array(name, row[name])
            data[name] = {"edge_weight": _floats, "y": _integers, "pu_y": _integers}.get(name, _booleans)(name, values)
    return data


def single_row(data: Dataset | DatasetDict) -> Mapping[str, Any]:
    """The only row of a data set.

    Raises:
        ValueError: several splits or rows, or none.
    """
    if isinstance(data, DatasetDict):
        if len(data) != 1:
            raise ValueError(f"name: found the splits {', '.join(data)}, allowed is a single one")
        data = next(iter(data.values()))
    if len(data) != 1:
        raise ValueError(f"name: found {len(data)} rows, allowed is one, with the graph")
    return data.with_format(None)[0]


def _array(name: str, values: Any) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: found lists of different lengths, allowed are such of one ({error})") from error


def _floats(name: str, values: NDArray[Any]) -> torch.Tensor:
    _refuse_kind(name, values, "biuf", "numbers")
    with np.errstate(over="ignore"):  # what is too large is refused as infinite
        return torch.from_numpy(values.astype(np.float32))


def _integers(name: str, values: NDArray[Any]) -> torch.Tensor:
    _refuse_kind(name, values, "iu", "integers")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def _booleans(name: str, values: NDArray[Any]) -> torch.Tensor:
    _refuse_kind(name, values, "b", "True and False")
    return torch.from_numpy(values.copy())


def _refuse_kind(name: str, values: NDArray[Any], kinds: str, allowed: str) -> None:
    if values.dtype.kind not in kinds:
        raise ValueError(f"{name}: found {values.dtype} of shape {values.shape}, allowed are {allowed}")
