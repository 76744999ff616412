"""The domains of a data set: how many, which row is of which, what they are called."""

from typing import Any

import numpy as np

from hf_ext.data.columns import row_values


class Domains:
    """The domains of the training data.

    Args:
        dataset: with a column of integers >= 0 or class labels, or of names.
        column: the column.
        names: what the ids stand for, if the column holds names.
        number: of domains, where the data cannot tell.
    """

    def __init__(self, dataset: Any, column: str, names: list[str] | None, number: int | None) -> None:
        feature: Any = (getattr(dataset, "features", None) or {}).get(column)
        self.names: list[str] | None = names or getattr(feature, "names", None)
        self.number = number or (len(self.names) if self.names else _largest(dataset, column) + 1)

    def name(self, domain: int) -> str:
        return self.names[domain] if self.names else str(domain)


def _largest(dataset: Any, column: str) -> int:
    return int(domains_of_rows(dataset, column).max(initial=0))


def domains_of_rows(dataset: Any, column: str) -> np.ndarray:
    """The domain of every row.

    Raises:
        ValueError: values that are no integers >= 0.
    """
    ids = np.asarray(row_values(dataset, column, "train_dataset"))
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or ids.min(initial=0) < 0:
        raise ValueError(f"{column}: found {ids.dtype} values, allowed are names or integers >= 0, one per sample")
    return ids
