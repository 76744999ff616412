"""A direct path from the history to the logits, of low rank, past the mediator."""

from torch import Tensor, nn

from .configuration_recsys import SequentialRecommenderConfig
from .dot_recsys import dot_scores
from .histories_recsys import masked_mean
from .tables_recsys import ProductTable, Rows, rows_of


class DirectPath(nn.Module):
    """Products of the mean of a history's items with a candidate, in embeddings of their own."""

    def __init__(self, config: SequentialRecommenderConfig) -> None:
        super().__init__()
        items, rank = config.num_items + 1, config.direct_rank
        self.history = ProductTable(items, rank, padding_idx=0)
        self.candidates = ProductTable(items, rank, padding_idx=0)

    def means(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """`[B, R]` of histories `[B, L]`; zeros without items."""
        return masked_mean(self.history(input_ids), mask)

    def forward(self, means: Tensor, rows: Rows) -> Tensor:
        """`[B, C]`: of every history its own candidates `[B, C]`, or those that all share, `[C]` or a span."""
        return dot_scores(means, rows_of(self.candidates, rows))
