"""What is said of the nodes of a graph: probabilities, which are positive, and which are so most likely."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .portable import as_number


@dataclass(frozen=True)
class GraphPUPrediction:
    """What is said of N nodes.

    Args:
        logits: `[N]`.
        probabilities: that a node is positive, `[N]`: the sigmoid of logits plus the configuration's `score_offset`.
        positive: whether it is called so, bool `[N]`: logits of at least the configuration's `threshold`, or without
            one probabilities of at least 0.5.
    """

    logits: Tensor
    probabilities: Tensor
    positive: Tensor

    def ranked(self, k: int | None = None, among: Tensor | None = None) -> Tensor:
        """Nodes by their logits, best first; equal ones in their own order.

        Args:
            k: how many; all by default.
            among: of which nodes, bool `[N]` or int64; all by default.

        Returns:
            int64, at most k.

        Raises:
            ValueError: a k below 1, or nodes that there are not.
        """
        nodes = torch.arange(len(self.logits), device=self.logits.device)
        if among is not None:
            nodes = nodes[_places(among, len(nodes)).to(nodes.device)]
        order = torch.argsort(self.logits[nodes], descending=True, stable=True)
        return nodes[order[: None if k is None else as_number(k, "k", at_least=1, integer=True)]]


def _places(among: Tensor, num_nodes: int) -> Tensor:
    """The nodes that are meant, in their own order, each once."""
    if among.dtype == torch.bool and among.shape == (num_nodes,):
        return among.nonzero()[:, 0]
    if among.dtype != torch.int64 or among.ndim != 1:
        kind = f"{among.dtype} of shape {tuple(among.shape)}"
        raise ValueError(f"among: found {kind}, allowed are bool [{num_nodes}] or nodes, int64")
    places = among.unique()
    if len(places) and not 0 <= int(places[0]) <= int(places[-1]) < num_nodes:
        found = int(places[0] if places[0] < 0 else places[-1])
        raise ValueError(f"among: found {found}, allowed are nodes 0 to {num_nodes - 1}")
    return places


class PredictingMixin:
    """`predict` of a model that gives every node a logit."""

    config: Any
    device: Any

    @torch.no_grad()
    def predict(
        self, x: Any, edge_index: Tensor | None = None, edge_weight: Tensor | None = None
    ) -> GraphPUPrediction:
        """What the model says of the nodes of a graph, without dropout.

        Args:
            x: features `[N, F]`; or a graph that has `x`, `edge_index` and perhaps `edge_weight`, such as PyTorch
                Geometric's `Data`.
            edge_index: int64 `[2, M]`.
            edge_weight: floats `[M]`; 1 by default. A scorer of edges multiplies them, see `learned_weights`.

        Raises:
            ValueError: see `GraphPUModel.forward`.
        """
        model: Any = self
        if hasattr(x, "edge_index"):
            x, edge_index, edge_weight = x.x, x.edge_index, getattr(x, "edge_weight", None)
        x, edge_index, edge_weight = (
            value.to(self.device) if isinstance(value, Tensor) else value for value in (x, edge_index, edge_weight)
        )
        with evaluating(model):
            if self.config.edge_scorer:
                edge_weight = model.learned_weights(x, edge_index, edge_weight)
            logits = model(x, edge_index, edge_weight).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        probabilities = torch.sigmoid(logits + self.config.score_offset)
        threshold = self.config.threshold
        positive = probabilities >= 0.5 if threshold is None else logits >= threshold
        return GraphPUPrediction(logits, probabilities, positive)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While this lasts the model is in evaluation mode; then every module is again in that which it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
