"""Columns that say which group a sample belongs to: names and ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, IterableDataset, Value

#: ids are places in tables, of losses or of routing weights; larger ones are numbers of something else
MOST_GROUPS = 2**20


def ids_of_rows(
    dataset: Any, column: str, *, bound: int | None = None, argument: str = "train_dataset", hint: str = ""
) -> np.ndarray:
    """The ids in a column, `[N]`.

    Args:
        dataset: with that column and a length.
        column: its name.
        bound: ids are in `[0, bound)`; by default in `[0, MOST_GROUPS)`.
        argument: what the data set is called in errors.
        hint: where the bound comes from, to be added to errors.

    Raises:
        ValueError: rows without the column, or values that are no integers, not one per sample, or out of bounds.
    """
    ids, bound = np.asarray(row_values(dataset, column, argument)), MOST_GROUPS if bound is None else bound
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{column}: found {ids.dtype} values in {argument}, allowed are integers, one per sample")
    if ids.size and (ids.min() < 0 or ids.max() >= bound):
        raise ValueError(
            f"{column}: found ids from {ids.min()} to {ids.max()} in {argument}, allowed are 0 to {bound - 1}{hint}"
        )
    return ids


def holds_text(dataset: Any, column: str) -> bool:
    """Whether a column of a `Dataset`, or of a stream as far as it says so, holds names rather than ids."""
    feature: Any = (dataset.features or {}).get(column) if isinstance(dataset, Dataset | IterableDataset) else None
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def text_values(dataset: Dataset, column: str) -> list[str]:
    """The names that occur, sorted.

    Raises:
        ValueError: rows without a name.
    """
    values = dataset.unique(column)
    if None in values:
        raise ValueError(f"{column}: found rows without a value, allowed is a name in each")
    return sorted(values)


def with_ids(dataset: Dataset, column: str, names: Sequence[str]) -> Dataset:
    """The data set with ids, indices into `names`, in place of names."""
    return dataset.cast_column(column, ClassLabel(names=list(names)))


def group_label(dataset: Any, column: str, group: int) -> str:
    """The name of a group: that of the class label if the column has such, its id otherwise."""
    feature: Any = (getattr(dataset, "features", None) or {}).get(column)
    named = hasattr(feature, "int2str") and 0 <= group < feature.num_classes
    return feature.int2str(group) if named else str(group)


def row_values(dataset: Any, column: str, argument: str) -> Any:
    """The values of a column as rows have them, that is after the data set's own transform.

    Raises:
        ValueError: rows without the column, since their format or transform leaves it out; `argument` says whose.
    """
    if len(dataset) and column not in dataset[0]:
        kind = (getattr(dataset, "format", None) or {}).get("type")
        cause = "transform (set_transform)" if kind == "custom" else "format (set_format)"
        raise ValueError(
            f"{column}: found none in the rows of {argument}, whose {cause} leaves the column out, allowed is one "
            "that keeps it"
        )
    return dataset[column][:]
