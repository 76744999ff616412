"""A perceptron of pairs of a history and a candidate, without a tensor of the features of all pairs."""

from torch import Tensor, nn
from transformers.activations import ACT2FN

from .configuration_recsys import SequentialRecommenderConfig


class PairPerceptron(nn.Module):
    """One number for each pair of a history and a candidate.

    The first layer is that of both parts' features side by side; each part goes through its columns of it once, before
    they meet.

    Args:
        history: width of a history's features.
        candidate: width of a candidate's.
    """

    def __init__(self, config: SequentialRecommenderConfig, history: int, candidate: int) -> None:
        super().__init__()
        inner = config.inner_size
        self.from_history = nn.Linear(history, inner)
        self.from_candidate = nn.Linear(candidate, inner, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(inner, inner) for _ in range(config.num_hidden_layers - 1))
        self.activation = ACT2FN[config.activation]
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(inner, 1)

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        """`[B, 1 or C, H]`, and `[B, C, D]` or `[C, D]`, to `[B, C]`."""
        states = self.dropout(self.activation(self.from_history(history) + self.from_candidate(candidates)))
        for layer in self.hidden:
            states = self.dropout(self.activation(layer(states)))
        return self.output(states)[..., 0]
