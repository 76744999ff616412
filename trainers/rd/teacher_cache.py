"""A data set whose rows bring a teacher's features along, computed once."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

COLUMN = "teacher_features"


class WithTeacherFeatures(Dataset[dict[str, Any]]):
    """The rows of a data set with a further column, `teacher_features`.

    Args:
        rows: a data set with a length, whose rows are dictionaries.
        features: `[N, ...]`, on the CPU.
    """

    def __init__(self, rows: Any, features: Tensor) -> None:
        self.rows, self.features = rows, features
        for name in ("_fingerprint", "builder_name", "info"):  # what a card says of the data
            if hasattr(rows, name):
                setattr(self, name, getattr(rows, name))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], COLUMN: self.features[index]}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        together = getattr(self.rows, "__getitems__", None)
        rows = together(indices) if together is not None else [self.rows[index] for index in indices]
        return [{**row, COLUMN: self.features[index]} for row, index in zip(rows, indices, strict=True)]


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
    found = []
    for batch in batches():
        if again is not None and not torch.equal(batch[name], again[name]):
            raise ValueError(
                "rd_cache_teacher: found images that change from one reading to the next, allowed are images without "
                "random augmentation: the teacher has to see what the student sees"
            )
        again = None
        found.append(compute(batch).cpu())
    return torch.cat(found)
