"""A scorer of edges, for graphs that were not there in training."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .configuration_graph import GraphPUConfig

#: what every edge's score is at the start; sigmoid(2) is 0.88
START = 2.0
#: floats that scoring a chunk of edges may hold at once
BUDGET = 2**24


class EdgeReadout(nn.Linear):
    """The last layer of a scorer: what it gives is `START` for all edges at first."""


class EdgeScorer(nn.Module):
    """One number for an edge, from what its two ends have in common and what not; the same in both directions."""

    def __init__(self, config: GraphPUConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.num_features, config.hidden_size)
        self.output = EdgeReadout(2 * config.hidden_size, 1)
        self.chunk = max(1, BUDGET // (4 * config.hidden_size))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Features `[N, F]` and edges `[2, M]` to scores `[M]`, a chunk of edges after the other."""
        states = torch.tanh(self.projection(x))
        if torch.compiler.is_compiling() or edge_index.shape[1] <= self.chunk:
            return self._scores(states, edge_index)
        score = self._scores
        if torch.is_grad_enabled():  # what a chunk needs is computed again in the backward pass
            score = partial(checkpoint, self._scores, use_reentrant=False)
        return torch.cat([score(states, part) for part in edge_index.split(self.chunk, dim=1)])

    def _scores(self, states: Tensor, edge_index: Tensor) -> Tensor:
        one, other = states[edge_index[0]], states[edge_index[1]]
        scores: Tensor = self.output(torch.cat([(one - other).abs(), one * other], dim=1))
        return scores[:, 0]
