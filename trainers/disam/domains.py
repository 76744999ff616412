"""The domains of a data set: how many, which row is of which, what they are called."""

from typing import Any

from hf_ext.data.columns import ids_of_rows


class Domains:
    """The domains of the training data.

    Args:
        dataset: with a column of integers >= 0 or class labels, or of names.
        column: the column.
        names: what the ids stand for, if the column holds names.
        number: of domains, where the data cannot tell.

    Raises:
        ValueError: no number and none to be counted, or ids that are no integers from 0 to below it.
    """

    def __init__(self, dataset: Any, column: str, names: list[str] | None, number: int | None) -> None:
        feature: Any = (getattr(dataset, "features", None) or {}).get(column)
        self.names: list[str] | None = names or getattr(feature, "names", None)
        self.number = number or (len(self.names) if self.names else _largest(dataset, column) + 1)
        if not names and can_be_asked(dataset):
            ids_of_rows(dataset, column, bound=self.number)

    def name(self, domain: int) -> str:
        return self.names[domain] if self.names else str(domain)


def _largest(dataset: Any, column: str) -> int:
    if not can_be_asked(dataset):
        raise ValueError(
            f"disam_num_domains: found None and no class labels in {column!r} of train_dataset, allowed is the number "
            "of domains"
        )
    return int(ids_of_rows(dataset, column).max(initial=0))


def can_be_asked(dataset: Any) -> bool:
    """Whether its columns can be looked at as a whole."""
    return hasattr(dataset, "column_names") and hasattr(dataset, "__len__")
