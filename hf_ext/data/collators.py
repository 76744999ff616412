"""A collator around another one, for integer columns that the other must not see."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]


class KeepColumns:
    """Removes columns from each example, has `collator` make the batch of the rest, adds them as int64 tensors `[B]`.

    Collators that rebuild a batch from the keys they know would lose the columns; those that tensorise everything
    would take them for inputs.

    Args:
        collator: any collator. Other attributes of this object (`tokenizer`, ...) are the collator's.
        columns: names of integer columns.
        bounds: optional upper bounds; ids of `column` must lie in `[0, bounds[column])`.

    Raises:
        ValueError: (when called) a column that only some examples have, values that are no integers, or ids out of
            range. A column that no example has is left out.
    """

    def __init__(self, collator: Collator, columns: Sequence[str], bounds: Mapping[str, int] | None = None) -> None:
        self.collator = collator
        self.columns = tuple(columns)
        self.bounds = dict(bounds or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "collator":  # while being unpickled there is no collator yet
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        ids = {name: self._ids(name, examples) for name in self.columns if any(name in row for row in examples)}
        batch = self.collator([{key: row[key] for key in row if key not in self.columns} for row in examples])
        return {**batch, **ids}

    def _ids(self, name: str, examples: list[dict[str, Any]]) -> Tensor:
        values = [row.get(name) for row in examples]
        missing = sum(value is None for value in values)
        if missing:
            raise ValueError(f"{name}: found none in {missing} of {len(examples)} examples, allowed is one id in each")
        try:
            ids = torch.stack([torch.as_tensor(value) for value in values])
        except (RuntimeError, TypeError) as error:  # text, or lists of different lengths
            raise ValueError(f"{name}: found {values[0]!r} and the like, allowed are integers") from error
        if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"{name}: found {ids.dtype} of shape {tuple(ids.shape[1:])}, allowed is an integer")
        bound = self.bounds.get(name)
        if bound is not None and len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= bound):
            raise ValueError(f"{name}: found ids from {ids.min()} to {ids.max()}, allowed are 0 to {bound - 1}")
        return ids.to(torch.int64)
