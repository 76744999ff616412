"""Tables of items: how they begin, and their rows, some or a span of all of them, which is then not copied."""

import torch
from torch import Tensor, nn

#: rows of items: any, `[B, C]` or `[C]`, or those from `start` to `stop` in their order
Rows = Tensor | slice


class ProductTable(nn.Embedding):
    """Embeddings of which products are logits as they are, and which begin large enough for that.

    Without a layer norm behind them they would stay small. A class, since weights are begun module by module.
    """


class BiasTable(nn.Embedding):
    """A number for every item, which begins at 0."""

    def __init__(self, items: int) -> None:
        super().__init__(items, 1, padding_idx=0)


def rows_of(table: nn.Module, rows: Rows) -> Tensor:
    """`[..., D]` of an embedding, also of one that an adapter has wrapped."""
    if isinstance(rows, Tensor):
        found: Tensor = table(rows)
        return found
    weights_are_all = isinstance(table, nn.Embedding) and type(table).forward is nn.Embedding.forward
    # sharded weights (FSDP2) are whole in the table's own forward pass alone
    if weights_are_all and not hasattr(table.weight, "to_local"):
        weights: Tensor = table.weight[rows]
        return weights
    device = next(table.parameters()).device
    wrapped: Tensor = table(torch.arange(rows.start, rows.stop, device=device))
    return wrapped


def spans(items: int, size: int) -> list[slice]:
    """All rows from 1 to `items`, in spans of at most `size`."""
    return [slice(low, min(low + size, items + 1)) for low in range(1, items + 1, size)]
