"""Two tables, of nodes and of edges, as a graph: any ids, and no guess at what a positive is."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from numpy.typing import NDArray
from pyarrow import ArrowException

from hf_ext.data.graphs.geometric import Data
from hf_ext.data.interactions.formats import column_of, distinct_columns, is_text, read_text
from hf_ext.data.interactions.values import ids_of

#: names of columns that are no features as far as anybody can tell from names
_NO_FEATURES = {"class", "index", "is_positive", "label", "labels", "nan", "positive", "target", "unnamed: 0", "y"}
_POSITIVE, _UNLABELED = {"1", "1.0", "true"}, {"0", "0.0", "false", ""}
#: text among numbers that makes of their column no column of text, but one with gaps
_MISSING = {"", "<na>", "n/a", "na", "nan", "none", "null"}
#: classes are places in tables of counts
_MOST_CLASSES = 2**20


@dataclass(frozen=True)
class Columns:
    """Which column is what; None: there is none of it, or of features, all others that hold numbers."""

    id: str = "id"
    source: str = "source"
    target: str = "target"
    features: Sequence[str] | None = None
    positive: str | None = None
    label: str | None = None
    weight: str | None = None


def read_table(argument: str, source: Any) -> pd.DataFrame:
    """A table from a path to csv, tsv or parquet, a DataFrame or a `datasets.Dataset`. Columns of text stay text.

    Raises:
        ValueError: something else, no such file, or one that cannot be read; without rows of different names.
    """
    if isinstance(source, pd.DataFrame):
        table = source.reset_index(drop=True)
    elif isinstance(source, Dataset):
        table = source.with_format(None).to_pandas()
    else:
        table = _read_file(argument, source)
    names = [str(name) for name in table.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{argument}: found several columns called {', '.join(twice)}, allowed is one of a name")
    return table.set_axis(names, axis=1)


def _read_file(argument: str, source: Any) -> pd.DataFrame:
    allowed = "allowed are a csv, tsv or parquet file, a DataFrame or a Dataset"
    if not isinstance(source, str | Path):
        raise ValueError(f"{argument}: found {type(source).__name__}, {allowed}")
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"{argument}: found {str(source)!r}, no file, {allowed}")
    if path.suffix.lower() in (".csv", ".tsv") and is_text(path):
        return read_text(path, argument)
    if path.suffix.lower() != ".parquet":
        raise ValueError(f"{argument}: found {str(source)!r}, {allowed}")
    try:
        return pd.read_parquet(path).reset_index(drop=True)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{argument}: found {str(source)!r}, which cannot be read ({error}), {allowed}") from error


def graph_of_tables(nodes: pd.DataFrame, edges: pd.DataFrame, columns: Columns) -> Data:
    """The graph of a row for each node and a row for each edge.

    Args:
        nodes, edges: tables whose columns have different names.
        columns: their roles.

    Returns:
        `x`, float32 `[N, F]`, `edge_index`, `node_ids` and `feature_names`, and, where there are columns of them,
        `positive_mask`, `y` (with `class_names` if these are text), `pu_y` (if `y` is 1 and 0, and 1 or unknown for
        all known positives) and `edge_weight`.

    Raises:
        ValueError: columns that are not there or in two roles; ids that are missing, or there twice, or in `edges` and
            not in `nodes`; features, positives, classes or weights that are none.
    """
    roles = {"id_column": columns.id, "positive_column": columns.positive, "label_column": columns.label}
    ends = {"source_column": columns.source, "target_column": columns.target, "weight_column": columns.weight}
    for table, given in ((nodes, roles), (edges, ends)):
        for argument, column in given.items():
            if column is not None:
                column_of(table, argument, column)
        distinct_columns(given)
    if nodes.empty:
        raise ValueError("nodes: found no rows, allowed is one for each node, at least one")
    ids = ids_of(nodes, columns.id)
    _refuse(ids.duplicated().to_numpy(), ids, columns.id, "nodes", "allowed is a row of its own for each id")
    names, x = _features(nodes, columns.features, [column for column in roles.values() if column is not None])
    pairs = [_places(edges, column, ids, columns.id) for column in (columns.source, columns.target)]
    data = Data(x=torch.from_numpy(x), edge_index=torch.from_numpy(np.stack(pairs)))
    data.node_ids, data.feature_names = ids.tolist(), names
    if columns.weight is not None:
        data.edge_weight = torch.from_numpy(_weights(edges[columns.weight]))
    if columns.label is not None:
        classes, class_names = _classes(nodes[columns.label])
        data.y = torch.from_numpy(classes)
        if class_names is not None:
            data.class_names = class_names
    if columns.positive is not None:
        data.positive_mask = torch.from_numpy(_positives(nodes[columns.positive]))
        _take_for_truth(data)
    return data


def _places(edges: pd.DataFrame, column: str, ids: pd.Series, id_column: str) -> NDArray[np.int64]:
    """The rows of the nodes that a column of edges names."""
    if edges.empty:
        return np.zeros(0, dtype=np.int64)
    named = ids_of(edges, column)
    if pd.api.types.is_integer_dtype(named) != pd.api.types.is_integer_dtype(ids):
        named, ids = named.astype(str), ids.astype(str)  # a column with one id such as "a7" is one of text
    places: NDArray[np.int64] = pd.Index(ids).get_indexer(pd.Index(named)).astype(np.int64)
    shown = ", ".join(map(repr, ids[:3].tolist()))
    _refuse(places < 0, named, column, "edges", f"allowed are ids of nodes ({id_column}), such as {shown}")
    return places


def _features(
    nodes: pd.DataFrame, given: Sequence[str] | None, others: list[str]
) -> tuple[list[str], NDArray[np.float32]]:
    """Names, and values `[N, F]`, of the columns that are given, or of all that hold numbers."""
    for column in given or ():
        column_of(nodes, "feature_columns", column)
        if column in others:
            raise ValueError(f"feature_columns: found {column!r}, which is the column of something else, too")
    blocks: dict[str, NDArray[np.float32]] = {}
    left_out = []
    for column in given if given is not None else [name for name in nodes.columns if name not in others]:
        block = _numbers(nodes[column])
        if block is not None:
            blocks[column] = block
        elif given is None:
            left_out.append(column)
        else:
            raise ValueError(f"{column}: found values that are no numbers, allowed are such in feature_columns")
    if not blocks:
        raise ValueError(f"feature_columns: found no column of numbers in nodes ({', '.join(nodes.columns)})")
    if left_out:
        warnings.warn(f"columns of nodes that are no numbers are no features: {', '.join(left_out)}", stacklevel=4)
    if given is None and (odd := [name for name in blocks if name.lower() in _NO_FEATURES]):
        warnings.warn(
            f"feature_columns: found {', '.join(odd)} among them; if these tell classes or count rows, name the "
            "features (feature_columns) or the classes (label_column)",
            stacklevel=4,
        )
    names: list[str] = []
    for column, block in blocks.items():
        one = block.shape[1] == 1
        own = [column] if one else [f"{column}[{place}]" for place in range(block.shape[1])]
        wrong = ~np.isfinite(block)
        if wrong.any():
            place = int(np.argmax(wrong.any(axis=0)))
            values = nodes[column] if one else pd.Series(block[:, place])
            _refuse(wrong[:, place], values, own[place], "nodes", "allowed are finite numbers as features")
        names += own
    return names, np.concatenate(list(blocks.values()), axis=1)


def _numbers(values: pd.Series) -> NDArray[np.float32] | None:
    """A column of numbers, or of lists of numbers of one length, float32 `[N, k]`; None if it is neither."""
    with np.errstate(over="ignore"):  # what is too large is refused as infinite
        if isinstance(values.iloc[0], list | tuple | np.ndarray):
            lengths = {np.shape(row) for row in values}
            if len(lengths) > 1:
                found = " and ".join(map(str, sorted(lengths)[:2]))
                raise ValueError(f"{values.name}: found lists of shapes {found}, allowed are lists of one length")
            rows = np.array(values.tolist())
            return rows.astype(np.float32) if rows.ndim == 2 and rows.dtype.kind in "biuf" and rows.size else None
        if not pd.api.types.is_numeric_dtype(values):
            values = values.astype(object).where(values.notna(), None)
            if not values.map(lambda value: isinstance(value, str | float | int | None)).all():
                return None
            numbers = pd.to_numeric(values, errors="coerce")
            missing = values.map(lambda value: value is None or str(value).strip().lower() in _MISSING)
            if missing.all() or (numbers.isna() & ~missing).any():
                return None
            values = numbers
        if pd.api.types.is_complex_dtype(values):
            return None
        return values.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)[:, None]


def _weights(values: pd.Series) -> NDArray[np.float32]:
    numbers = _numbers(values) if len(values) else np.zeros((0, 1), dtype=np.float32)
    if numbers is None or numbers.shape[1] != 1:
        raise ValueError(f"{values.name}: found weights that are no numbers, allowed are such, >= 0")
    wrong = ~np.isfinite(numbers[:, 0]) | (numbers[:, 0] < 0)
    _refuse(wrong, values, str(values.name), "edges", "allowed are finite numbers >= 0")
    return numbers[:, 0]


def _positives(values: pd.Series) -> NDArray[np.bool_]:
    """Which nodes are known positives: 1, true; not those that are 0, false or missing. Nothing else has a meaning."""
    meanings = [_meaning(value) for value in values]
    wrong = np.array([meaning is None for meaning in meanings])
    allowed = "allowed are 1 or true for known positives, and 0, false or nothing for all other nodes"
    _refuse(wrong, values, str(values.name), "nodes", allowed)
    return np.array(meanings, dtype=bool)


def _meaning(value: Any) -> bool | None:
    if isinstance(value, str):
        value = value.strip().lower()
        return True if value in _POSITIVE else False if value in _UNLABELED else None
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return False
    if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating) and value in (0, 1):
        return bool(value)
    return None


def _classes(values: pd.Series) -> tuple[NDArray[np.int64], list[str] | None]:
    """Classes, -1 where there is none, and the names of such that are text, in the order of the alphabet."""
    known = values.notna().to_numpy()
    classes = np.full(len(values), -1)
    if not known.any():
        return classes, None
    found = values[known].reset_index(drop=True)
    if found.map(lambda value: isinstance(value, bool | np.bool_)).all():
        found = found.astype(np.int64)
    elif found.map(lambda value: isinstance(value, str) and value.lower() in ("false", "true")).all():
        found = (found.str.lower() == "true").astype(np.int64)
    else:
        found = ids_of(found.to_frame(values.name), str(values.name))
    if not pd.api.types.is_integer_dtype(found):
        classes[known], names = pd.factorize(found, sort=True)
        return classes, [str(name) for name in names]
    wrong = ((found < -1) | (found >= _MOST_CLASSES)).to_numpy()
    _refuse(wrong, found, str(values.name), "nodes", f"allowed are 0 to {_MOST_CLASSES - 1}, or -1 where unknown")
    classes[known] = found
    return classes, None


def _take_for_truth(data: Data) -> None:
    """`y` as `pu_y`, if it has two classes, 1 and 0, and no known positive has the latter."""
    if "y" not in data or "class_names" in data or data.y.max() > 1 or data.y.max() < 0:
        return
    contradicted = int((data.positive_mask & (data.y == 0)).sum())
    if contradicted:
        warnings.warn(
            f"{contradicted} known positives have the class 0: classes are not taken for the truth (pu_y)",
            stacklevel=4,
        )
        return
    data.pu_y = data.y.clone()


def _refuse(wrong: NDArray[np.bool_], values: pd.Series, column: str, table: str, allowed: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        value = values.iloc[row]
        value = value.item() if isinstance(value, np.generic) else value
        raise ValueError(
            f"{column}: found {value!r} in row {row} of {table} (counted from 0; {int(wrong.sum())} such), {allowed}"
        )
