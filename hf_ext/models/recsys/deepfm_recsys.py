"""DeepFM: a factorisation machine and a perceptron (Guo et al., IJCAI 2017, https://arxiv.org/abs/1703.04247)."""

import torch
from torch import Tensor, nn

from .configuration_recsys import SequentialRecommenderConfig
from .dot_recsys import dot_scores
from .histories_recsys import Compacted, masked_mean
from .perceptron_recsys import PairPerceptron
from .tables_recsys import BiasTable, Rows, rows_of


def history_fields(embedded: Tensor, compacted: Compacted) -> Tensor:
    """The fields of a history, its mean and its newest item, `[B, 2 D]`; zeros without items.

    Args:
        embedded: `[B, L, D]`, items in front.
        compacted: how they got there.
    """
    places = torch.arange(embedded.shape[1], device=embedded.device)
    mean = masked_mean(embedded, places < compacted.lengths[:, None])
    return torch.cat([mean, compacted.newest(embedded)], dim=-1)


class DeepFMScorer(nn.Module):
    """First order, products of pairs of fields and a perceptron of all: the fields of a history, and a candidate."""

    def __init__(self, config: SequentialRecommenderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.item_bias = BiasTable(config.num_items + 1)
        self.history_bias = nn.Linear(2 * width, 1)
        self.perceptron = PairPerceptron(config, 2 * width, width)

    def forward(self, mediator: Tensor, candidates: Tensor, rows: Rows) -> Tensor:
        """`[B, C]` of fields `[B, 2 D]`, candidates `[B, C, D]` or `[C, D]` and their rows."""
        mean, newest = mediator.chunk(2, dim=-1)
        first = rows_of(self.item_bias, rows)[..., 0] + self.history_bias(mediator)
        products = (mean * newest).sum(dim=-1, keepdim=True) + dot_scores(mean + newest, candidates)
        return first + products + self.perceptron(mediator[:, None], candidates)
