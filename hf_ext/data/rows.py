"""A data set whose rows get further columns."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset


class WithColumns(Dataset[dict[str, Any]]):
    """The rows of a data set, each with its entry of every further column.

    Works for any map-style data set of dicts, `datasets.Dataset` among them, and copies nothing. All other attributes
    of this object (`column_names`, `features`, `info`, ...) are those of the data set.

    Args:
        dataset: with a length, whose rows are dicts.
        **columns: by name, a range, list, array or tensor of shape `[N, ...]`, N the length of the data set. A column
            that the data set has under this name is replaced.

    Raises:
        ValueError: a column of another length.

    Example:
        >>> WithColumns([{"x": 0.5}, {"x": 1.5}], row=range(2))[1]
        {'x': 1.5, 'row': 1}
    """

    def __init__(self, dataset: Any, /, **columns: Sequence[Any] | Tensor) -> None:
        for name, values in columns.items():
            if len(values) != len(dataset):
                raise ValueError(f"{name}: found {len(values)} values, allowed is one for each of {len(dataset)} rows")
        self.dataset, self.columns = dataset, columns

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # while being unpickled there is none yet
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._extended(self.dataset[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a batch, which a DataLoader asks for at once: `datasets.Dataset` reads them in one go."""
        fetch = getattr(self.dataset, "__getitems__", None)
        rows = fetch(indices) if fetch else [self.dataset[index] for index in indices]
        return [self._extended(row, index) for row, index in zip(rows, indices, strict=True)]

    def _extended(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        return {**row, **{name: values[index] for name, values in self.columns.items()}}
