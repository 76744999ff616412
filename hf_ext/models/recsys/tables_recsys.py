"""Rows of an item table: some, or a span of all of them, which is then not copied."""

import torch
from torch import Tensor, nn

#: rows of items: any, `[B, C]` or `[C]`, or those from `start` to `stop` in their order
Rows = Tensor | slice


def rows_of(table: nn.Module, rows: Rows) -> Tensor:
    """`[..., D]` of an embedding, also of one that an adapter has wrapped."""
    if isinstance(rows, Tensor):
        found: Tensor = table(rows)
        return found
    if type(table) is nn.Embedding:  # its weights are all there is to it
        return table.weight[rows]
    device = next(table.parameters()).device
    wrapped: Tensor = table(torch.arange(rows.start, rows.stop, device=device))
    return wrapped


def spans(items: int, size: int) -> list[slice]:
    """All rows from 1 to `items`, in spans of at most `size`."""
    return [slice(low, min(low + size, items + 1)) for low in range(1, items + 1, size)]
