"""A teacher's features of a whole data set, computed once."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: the column in which rows carry them
COLUMN = "teacher_features"


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
