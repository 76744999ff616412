"""Columns that say which group a sample belongs to: names and ids."""

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, Value


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
