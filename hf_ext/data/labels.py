"""The label of every row, read from a column alone: pictures beside it are not opened."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray


def label_values(labels: Any, column: str | None = None, *, argument: str = "labels") -> NDArray[Any]:
    """Labels as an array, `[N]`: int64 numbers >= 0, or names as they are.

    Args:
        labels: a sequence, array or tensor of numbers or names, or a `datasets.Dataset` with them in a column.
        column: its name, for a `Dataset` only. What it holds counts, whatever the format or transform of the data set.
        argument: what the labels are called in errors.

    Raises:
        ValueError: no rows, rows without a label (None, NaN, a negative number such as -100), labels that are neither
            integers nor names, more than one in a row, or a column that is not there.
    """
    values = _array(_column(labels, column, argument), argument)
    allowed = "allowed are integers >= 0 or names, one for each row"
    if values.ndim != 1:
        raise ValueError(f"{argument}: found an array of shape {values.shape}, {allowed}")
    if not len(values):
        raise ValueError(f"{argument}: found no rows, {allowed}")
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values):
        values = values.astype(str)
    if values.dtype.kind not in "iuU":
        raise ValueError(f"{argument}: found {_strange(values)!r} ({values.dtype}), {allowed}")
    if values.dtype.kind != "U":
        values = values.astype(np.int64)
        if values.min() < 0:
            raise ValueError(f"{argument}: found {values.min()}, {allowed}")
    return values


def label_names(labels: Any, column: str | None = None) -> list[str] | None:
    """The names of all classes, where the column of a `Dataset` knows them: those of a `ClassLabel`."""
    feature = labels.features.get(column) if isinstance(labels, Dataset) and column is not None else None
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _column(labels: Any, column: str | None, argument: str) -> Any:
    if isinstance(labels, Dataset):
        if column not in labels.column_names:
            raise ValueError(f"column: found {column!r}, allowed are {labels.column_names}")
        return labels.with_format("numpy")[column][:]
    if column is not None:
        raise ValueError(f"column: found {column!r} for {argument} of type {type(labels).__name__}, allowed is None")
    if isinstance(labels, dict | str):
        raise ValueError(f"{argument}: found a {type(labels).__name__}, allowed are sequences or a datasets.Dataset")
    return labels[:] if isinstance(labels, Sequence) else labels  # [:] reads a column of a data set in one go


def _array(values: Any, argument: str) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{argument}: found rows of several lengths, allowed is one label for each row") from error
    if array.dtype.kind == "U" and array.ndim == 1 and not isinstance(values, np.ndarray):
        return np.asarray(values, dtype=object)  # numpy has made text of numbers between names
    return array


def _strange(values: NDArray[Any]) -> Any:
    """A value that does not belong here: a missing one, else one of another type, else a number between names."""
    found = values.tolist()
    missing = [value for value in found if value is None or value != value]
    others = [value for value in found if isinstance(value, bool) or not isinstance(value, int | str)]
    numbers = [value for value in found if not isinstance(value, str)]
    return (missing + others + numbers)[0]
