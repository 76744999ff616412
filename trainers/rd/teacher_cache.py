"""A teacher's features of a whole data set, computed once."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_ext.data.rows import WithColumns

#: the column in which rows carry them
COLUMN = "teacher_features"
_ROWS_AT_ONCE = 1024


def check_features(rows: Any) -> None:
    """Refuse features that are not finite, where they lie in a column: of a `Dataset`, or added by `WithColumns`.

    Where they are made as rows are read, the step that meets them stops the training.

    Raises:
        ValueError: it names the row.
    """
    if isinstance(rows, WithColumns) and COLUMN in rows.columns:
        column: Any = rows.columns[COLUMN]
    elif isinstance(rows, Dataset) and COLUMN in rows.column_names:
        column = rows.select_columns(COLUMN).with_format("numpy")
    else:
        return
    for first in range(0, len(column), _ROWS_AT_ONCE):
        part = column[first : first + _ROWS_AT_ONCE]
        values = np.asarray(part[COLUMN] if isinstance(part, dict) else part)
        if values.dtype.kind != "f":
            return  # the model says what is wrong with these
        broken = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if len(broken):
            raise ValueError(
                f"{COLUMN}: found values that are NaN or infinite in row {first + broken[0]} of the training data, "
                "allowed are finite ones"
            )


def features_of(
    batches: Callable[[], Iterable[dict[str, Any]]], compute: Callable[[dict[str, Any]], Tensor], name: str
) -> Tensor:
    """A teacher's features of all batches, on the CPU.

    Args:
        batches: gives them anew, in the same order.
        compute: gives the features of a batch, `[B, ...]`.
        name: of the column with the images.

    Raises:
        ValueError: images that are not the same twice.
    """
    again: Any = next(iter(batches()))
    features = []
    for batch in batches():
        if again is not None and not torch.equal(batch[name], again[name]):
            raise ValueError(
                "rd_cache_teacher: found images that change from one reading to the next, allowed are images without "
                "random augmentation: the teacher has to see what the student sees"
            )
        again = None
        features.append(compute(batch).cpu())
    return torch.cat(features)
