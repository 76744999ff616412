"""Which rows of the training data are to be forgotten: by mask, by index, or by the values of a column."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Subset

from hf_ext.data.rows import WithColumns

_ALLOWED = "a data set, a mask with True or False for every row of train_dataset, or integers, the rows' indices"


def split_rows(data: Any, forget: Any, *, column: str | None = None, values: Any = None) -> tuple[Any, Any]:
    """The remaining data and the data to forget.

    Args:
        data: both, or the remaining data alone.
        forget: a data set, which leaves `data` as it is; a mask, as long as `data`; indices of rows, in any order;
            or None. Masks and indices may be lists, sets, ranges, arrays, tensors or a column of pandas.
        column, values: instead, the column that says which rows are to be forgotten, and its values that are: names
            of its classes, or else their ids. Without values it has to be a column of True and False, or of 1 and 0.

    Raises:
        ValueError: both given, anything else given, no such column, no such row, or nothing that remains.
    """
    if not hasattr(data, "__len__") and (column is not None or not (forget is None or _is_data_set(forget))):
        found = (
            f"tarf_forget_column: found {column!r}"
            if forget is None
            else f"forget_dataset: found a {type(forget).__name__}"
        )
        raise ValueError(
            f"{found} with a stream as train_dataset, allowed is a data set as forget_dataset, with "
            "tarf_selection='none': a stream's rows have no numbers"
        )
    if column is not None:
        if forget is not None:
            raise ValueError("forget_dataset: found one with tarf_forget_column, allowed is one of the two")
        check_column(data, "tarf_forget_column", column)
        rows = _marked_rows(data, column) if values is None else _rows_with(data, column, values)
    elif forget is None or _is_data_set(forget):
        return data, forget
    else:
        rows = _rows_of(forget, data)
    others = np.setdiff1d(np.arange(len(data)), rows)
    if not len(others):
        raise ValueError(f"train_dataset: found all {len(data)} rows to be forgotten, allowed are some that remain")
    return _select(data, others), _select(data, rows)


def rows_outside(data: Any, column: str, values: Any = None) -> NDArray[np.int64] | None:
    """Places of the rows that a column does not say are to be forgotten, as for `split_rows`; of other data.

    None if these data do not have the column. A value that does not occur in them is in no row.
    """
    if column not in (getattr(data, "column_names", None) or ()):
        return None
    wanted = list(values) if isinstance(values, list | tuple | set) else [values]
    outside = np.arange(len(data))
    for value in wanted:
        try:
            rows = _marked_rows(data, column) if value is None else _rows_with(data, column, [value])
        except ValueError:
            continue
        outside = np.setdiff1d(outside, rows)
    return outside


def check_column(data: Any, argument: str, column: str | None) -> None:
    """Refuse a column that the data, as far as they can be asked, do not have."""
    columns = getattr(data, "column_names", None)
    if column is None or not isinstance(columns, list):
        return
    columns = [*columns, *(data.columns if isinstance(data, WithColumns) else ())]
    if column not in columns:
        raise ValueError(f"{argument}: found {column!r}, allowed are {', '.join(sorted(columns))}")


def _select(data: Any, rows: NDArray[np.int64]) -> Any:
    return data.select(rows) if isinstance(data, Dataset) else Subset(data, rows.tolist())


# ------------------------------------------------------------------------------------------------ masks and indices
def _is_data_set(value: Any) -> bool:
    """Whether these are rows themselves."""
    if hasattr(value, "column_names") or isinstance(value, TorchDataset):
        return True
    if isinstance(value, Mapping) or hasattr(value, "__array__") or not hasattr(value, "__getitem__"):
        return False
    return len(value) > 0 and isinstance(value[0], Mapping)  # a column of a data set is a sequence, too


def _rows_of(forget: Any, data: Any) -> NDArray[np.int64]:
    """Ascending row numbers, from a mask or from indices."""
    values, total = _values(forget), len(data)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "biu"):
        found = f"{type(forget).__name__} of {_described(values)}"
        raise ValueError(f"forget_dataset: found a {found}, allowed are {_ALLOWED}")
    if values.dtype.kind == "b":
        if len(values) != total:
            raise ValueError(
                f"forget_dataset: found a mask of {len(values)} rows, {int(values.sum())} of them to be forgotten, "
                f"allowed is one for each of the {total} rows of train_dataset"
            )
        return np.flatnonzero(values)
    rows = np.unique(values)
    if len(rows) and (rows[0] < 0 or rows[-1] >= total):
        raise ValueError(
            f"forget_dataset: found rows {rows[0]} to {rows[-1]}, allowed are 0 to {total - 1} ({len(rows)} would be "
            "forgotten)"
        )
    if len(values) > len(rows) and set(rows.tolist()) <= {0, 1}:
        raise ValueError(
            f"forget_dataset: found {len(values)} integers, all 0 or 1, which as indices would forget {len(rows)} "
            "rows, allowed are indices, each once, or a mask of True and False"
        )
    return rows.astype(np.int64)


def _values(forget: Any) -> NDArray[Any]:
    """What was given as an array: of objects where kinds are mixed or entries missing, without axes for no array."""
    try:
        if isinstance(forget, Tensor):
            forget = forget.detach().cpu()
        values: NDArray[Any] = np.asanyarray(forget)
        if values.dtype == object or isinstance(values, np.ma.MaskedArray):
            forget = values.tolist()  # a masked entry becomes None
        if hasattr(forget, "__array__"):
            return values
        is_plural = hasattr(forget, "__len__") and not isinstance(forget, str | bytes | Mapping)
        if not is_plural and not isinstance(forget, list):
            return np.asarray(None)
        entries = [entry.item() if hasattr(entry, "item") else entry for entry in forget]
        is_mixed = len({isinstance(entry, bool) for entry in entries}) > 1
        return np.asarray(entries, dtype=object if is_mixed else None)
    except (TypeError, ValueError, RuntimeError):  # lists of different lengths, tensors without numpy's types
        return np.asarray(None)


def _described(values: NDArray[Any]) -> str:
    if values.ndim != 1:
        return f"shape {values.shape}"
    if any(isinstance(value, bool) for value in values):
        return "True, False and other values"
    return f"{len(values)} {values.dtype} values"


# ------------------------------------------------------------------------------------------------ a column
def _entries(data: Any, column: str) -> list[Any]:
    """One of every row, as stored: without what a format or a transform makes of them."""
    if isinstance(data, Dataset):
        return list(data.with_format(None)[column])
    try:
        entries = [data[row][column] for row in range(len(data))]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"tarf_forget_column: found {column!r}, allowed is a key of every row of train_dataset, which are dicts"
        ) from error
    return [entry.item() if hasattr(entry, "item") and np.ndim(entry) == 0 else entry for entry in entries]


def _marked_rows(data: Any, column: str) -> NDArray[np.int64]:
    """Rows that a column of True and False, or of 1 and 0, marks."""
    entries = _entries(data, column)
    named = hasattr(_feature(data, column), "int2str")
    marks = [isinstance(entry, bool | np.bool_ | int | np.integer) and entry in (0, 1) for entry in entries]
    if named or not all(marks):
        found = "class labels" if named else f"values such as {entries[marks.index(False)]!r}"
        raise ValueError(
            f"tarf_forget_value: found none for {found} in {column!r}, allowed is none for True and False or 1 and 0, "
            "or else the values that are to be forgotten"
        )
    return _some_rows(np.flatnonzero(np.asarray(entries, dtype=bool)), "True", column)


def _rows_with(data: Any, column: str, values: Any) -> NDArray[np.int64]:
    """Rows whose entry is one of these values, each of which has to occur."""
    values = values.tolist() if hasattr(values, "tolist") else values
    wanted = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    entries, feature = _entries(data, column), _feature(data, column)
    names: Sequence[str] | None = feature.names if hasattr(feature, "int2str") else None
    rows: list[NDArray[np.int64]] = []
    for value in wanted:
        number = value if names is None else _class_id(value, names)
        matches = [_equals(entry, number) for entry in entries]
        rows.append(_some_rows(np.flatnonzero(matches), value, column))
    return np.unique(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)


def _some_rows(rows: NDArray[np.int64], value: Any, column: str) -> NDArray[np.int64]:
    if not len(rows):
        raise ValueError(f"tarf_forget_value: found {value!r} in no row of {column!r}, allowed are its values")
    return rows


def _class_id(value: Any, names: Sequence[str]) -> int | None:
    """The class that a value names, or else whose id it is; None for none."""
    text = str(value)
    by_name = names.index(text) if text in names else None
    by_id = int(text) if text.isascii() and text.isdigit() and int(text) < len(names) else None
    if by_name is not None and by_id is not None and by_name != by_id and not isinstance(value, str):
        raise ValueError(
            f"tarf_forget_value: found {value!r}, the id of class {names[by_id]!r} and the name of class {by_name}, "
            "allowed is the name, as text"
        )
    return by_id if by_name is None else by_name


def _equals(entry: Any, value: Any) -> bool:
    """Whether an entry is a value, which may be written as text."""
    if isinstance(entry, bool | np.bool_):
        return str(bool(entry)).lower() == str(value).lower()
    if isinstance(entry, int | float | np.number):
        return bool(entry == _number(value))
    return str(entry) == str(value) if entry is not None else False


def _number(value: Any) -> Any:
    """The number that a value is or that text writes: an integer where it can be, since floats have 53 bits alone."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return None


def _feature(data: Any, column: str) -> Any:
    return (getattr(data, "features", None) or {}).get(column)
