"""One call from a name of data, or two tables, to a graph."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict

from hf_ext._arguments import check_value
from hf_ext.data.graphs.checks import check_graph, check_structure, without_loops
from hf_ext.data.graphs.digits import DIGITS_GRAPH, digits_graph
from hf_ext.data.graphs.formats import (
    is_geom_gcn,
    planetoid_name,
    read_geom_gcn,
    read_npz,
    read_planetoid,
    read_row,
    single_row,
)
from hf_ext.data.graphs.geometric import Data
from hf_ext.data.graphs.tables import Columns, graph_of_tables, read_table
from hf_ext.data.loading import load


def load_graph(
    name: str | Path | Dataset | DatasetDict | Mapping[str, Any] | None = None,
    *,
    nodes: Any = None,
    edges: Any = None,
    id_column: str = "id",
    source_column: str = "source",
    target_column: str = "target",
    feature_columns: Sequence[str] | str | None = None,
    positive_column: str | None = None,
    label_column: str | None = None,
    weight_column: str | None = None,
    undirected: bool = True,
) -> Data:
    """Read a graph, by a name or from a table of nodes and one of edges.

    Args:
        name: `"digits-graph"`; an npz file with `x`, `edge_index`, `y`, or with the names of heterophilous-graphs; a
            folder with the text files of geom-gcn, or with planetoid's `ind.NAME.*` (of whose pickles only arrays are
            read); a row, or data of one row, with `edge_index`, `x` or `node_feat`, and optionally `edge_weight`, `y`,
            `pu_y` and masks; or whatever else `hf_ext.data.load` makes such data of, as a Hub id.
        nodes, edges: in place of a name; each is a path to csv, tsv or parquet, a DataFrame or a `Dataset`.
        id_column: of nodes: integers or text, each once.
        source_column, target_column: of edges: ids of nodes. Messages go from source to target.
        feature_columns: of nodes, numbers or lists of numbers. None: all others that hold such; a warning names those
            that do not, and those that sound like classes.
        positive_column: of nodes: 1 or true for known positives; 0, false or nothing for all others, whatever they
            are. Any other value is refused.
        label_column: of nodes: classes as integers from 0 or text; -1 or nothing where unknown.
        weight_column: of edges: finite numbers from 0.
        undirected: add the reverse of every edge that has none. Duplicates stay, and count as often as they are there.

    Returns:
        A PyG `Data` without self-loops (a warning says how many there were): `x`, float32 `[N, F]`, `edge_index`, and
        what is known of `edge_weight`, `y`, `positive_mask`, `pu_y`, `node_ids`, `feature_names`, `class_names`.

    Raises:
        ValueError: nothing of that name, data that cannot be read, columns that are missing or hold something else,
            ids of edges that no node has, and all that `check_structure` refuses, and `check_graph`, if there is a
            `positive_mask`.
    """
    if isinstance(feature_columns, str):
        feature_columns = [feature_columns]
    columns = Columns(
        id_column, source_column, target_column, feature_columns, positive_column, label_column, weight_column
    )
    _check_columns(columns)
    check_value("undirected", undirected, bool)
    if name is not None:
        _refuse_tables(name, nodes, edges, columns)
        data = _named(name)
    else:
        for argument, table in (("nodes", nodes), ("edges", edges)):
            if table is None:
                raise ValueError(f"{argument}: found None, allowed are tables of nodes and edges, or a name")
        data = graph_of_tables(read_table("nodes", nodes), read_table("edges", edges), columns)
    check_structure(data)
    data = without_loops(data)
    if undirected:
        data = _both_directions(data)
    if "positive_mask" in data:
        check_graph(data)
    return data


def _check_columns(columns: Columns) -> None:
    for field in fields(columns):
        if field.name != "features":
            kind = str if field.default else str | None
            check_value(_argument(field.name), getattr(columns, field.name), kind)
    names: Any = columns.features
    if names is not None and not (
        isinstance(names, list | tuple)
        and all(isinstance(name, str) for name in names)
        and 0 < len(names) == len(set(names))
    ):
        raise ValueError(f"feature_columns: found {names!r}, allowed are different names, at least one, or None")


def _argument(field: str) -> str:
    """What a field of `Columns` is called here."""
    return "feature_columns" if field == "features" else f"{field}_column"


def _refuse_tables(name: Any, nodes: Any, edges: Any, columns: Columns) -> None:
    """Refuse tables and their options beside a name: they would be without effect."""
    changed = {_argument(one.name) for one in fields(columns) if getattr(columns, one.name) != one.default}
    given = sorted(
        changed | {argument for argument, table in (("nodes", nodes), ("edges", edges)) if table is not None}
    )
    if given:
        raise ValueError(f"{given[0]}: found one beside the name {_called(name)}, allowed are tables or a name")


def _called(name: Any) -> str:
    return repr(str(name)) if isinstance(name, str | Path) else f"of a {type(name).__name__}"


def _named(name: Any) -> Data:
    if isinstance(name, Data):
        raise ValueError("name: found a Data, which is a graph already")
    if isinstance(name, Mapping) and not isinstance(name, DatasetDict):
        return read_row(name)
    if isinstance(name, Dataset | DatasetDict):
        return read_row(single_row(name))
    if not isinstance(name, str | Path):
        raise ValueError(
            f"name: found {type(name).__name__}, allowed are a name, a path, a row or a Dataset of one row"
        )
    if name == DIGITS_GRAPH:
        return digits_graph()
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() == ".npz":
        return read_npz(path)
    if path.is_dir() and is_geom_gcn(path):
        return read_geom_gcn(path)
    if path.is_dir() and (found := planetoid_name(path)) is not None:
        return read_planetoid(path, found)
    if path.suffix.lower() == ".npz":
        raise ValueError(f"name: found {str(name)!r}, no file, allowed is one")
    try:
        loaded = load(str(name))
    except ValueError as error:
        raise ValueError(f"{error}; of graphs: {DIGITS_GRAPH}, npz, a folder of geom-gcn or planetoid") from error
    return read_row(single_row(loaded))


def _both_directions(data: Data) -> Data:
    """The graph with the reverse of every edge that has none, after those that are there."""
    source, target = data.edge_index
    number = len(data.x)
    lonely = ~torch.isin(target * number + source, source * number + target)
    data.edge_index = torch.cat([data.edge_index, data.edge_index[:, lonely].flip(0)], dim=1)
    if "edge_weight" in data:
        data.edge_weight = torch.cat([data.edge_weight, data.edge_weight[lonely]])
    return data
