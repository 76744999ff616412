"""DIN: every candidate attends to the history (Zhou et al., KDD 2018, https://arxiv.org/abs/1706.06978)."""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_recsys import SequentialRecommenderConfig
from .perceptron_recsys import PairPerceptron
from .tables_recsys import BiasTable, Rows, rows_of


class TargetAttention(nn.Module):
    """Weights of the items of a history for each candidate, and their weighted sum: the interest in the candidate.

    A weight is a perceptron's of candidate, item and their product. The first layer of these three side by side is the
    sum of three layers; the difference of the two, which the paper's has besides, is in that sum already.
    """

    def __init__(self, config: SequentialRecommenderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.normalise = config.din_normalise
        self.from_candidate = nn.Linear(width, width)
        self.from_item = nn.Linear(width, width, bias=False)
        self.from_product = nn.Linear(width, width, bias=False)
        self.activation = ACT2FN[config.activation]
        self.output = nn.Linear(width, 1)

    def forward(self, history: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        """Interests `[B, C, D]`, zeros where there are no items.

        Args:
            history: `[B, L, D]`.
            mask: `[B, L]` bool.
            candidates: `[B, C, D]`, or `[C, D]` for all histories.
        """
        product = self.from_product(candidates[..., :, None, :] * history[:, None])
        hidden = self.from_candidate(candidates)[..., :, None, :] + self.from_item(history)[:, None] + product
        weights = self.output(self.activation(hidden))[..., 0]
        if self.normalise:
            smallest = torch.finfo(weights.dtype).min  # not -inf: a row without items would be NaN
            weights = weights.masked_fill(~mask[:, None], smallest).softmax(dim=-1)
        return weights.masked_fill(~mask[:, None], 0) @ history


class DINScorer(nn.Module):
    """A perceptron of interest, candidate and their product."""

    def __init__(self, config: SequentialRecommenderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.item_bias = BiasTable(config.num_items + 1)
        self.perceptron = PairPerceptron(config, 2 * width, width)

    def forward(self, mediator: Tensor, candidates: Tensor, rows: Rows) -> Tensor:
        """`[B, C]` of interests `[B, C, D]`, candidates `[B, C, D]` or `[C, D]` and their rows."""
        pairs = torch.cat([mediator, mediator * candidates], dim=-1)
        return rows_of(self.item_bias, rows)[..., 0] + self.perceptron(pairs, candidates)
