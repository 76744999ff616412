"""Weights of edges that are learnt from labels which travel along them: a number each, or a scorer's."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hf_ext.functional import edge_weights, label_propagation_loss
from hf_ext.trainers.gpl.graph import PUGraph
from hf_ext.trainers.gpl.optimizer_state import packed, unpack
from hf_ext.trainers.gpl.targets import Targets
from hf_ext.trainers.passes import evaluation_mode

_ADAM = "gpl_edge_adam"


class LearnedEdges:
    """Edges of a graph whose logits have an Adam of their own; the model's optimizer never sees them.

    Args:
        graph: on the device.
        parameters: that the logits are made of.
        args: with `GPLArguments`.
    """

    def __init__(self, graph: PUGraph, parameters: Iterable[nn.Parameter], args: Any) -> None:
        self.graph, self.args, self.parameters = graph, args, list(parameters)
        self.optimizer = torch.optim.Adam(self.parameters, lr=args.gpl_edge_lr)
        nodes = torch.arange(graph.num_nodes, device=graph.x.device)
        # the loss has a loop of weight 1 for every node: with it a node hears itself beside its neighbours
        self._with_loops = torch.cat([graph.edge_index, nodes.expand(2, -1)], dim=1)

    def scores(self) -> Tensor:
        """Logits, `[M]`."""
        raise NotImplementedError

    def weights(self) -> Tensor:
        """`[M]`, at least float32: those learnt, times those given."""
        graph = self.graph
        learnt = edge_weights(self.scores(), graph.edge_index, num_nodes=graph.num_nodes, kind=self.args.gpl_edge_kind)
        return learnt if graph.edge_weight is None else learnt * graph.edge_weight

    def learn(self, targets: Targets, unknown: float) -> Tensor | None:
        """Some steps down the label propagation loss of these targets; the loss before the last one, detached.

        Args:
            targets: of the last selection.
            unknown: the label q(0) of nodes that are neither positive nor negative.
        """
        labels = targets.pseudo_labels()
        q = torch.where(labels < 0, unknown, labels.float())
        loss = None
        for _ in range(self.args.gpl_edge_steps):
            loss = self._step(q, targets.positive, targets.negative)
        return loss

    def _step(self, q: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        args = self.args
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                weights = self.weights()
                loss = label_propagation_loss(
                    self._with_loops,
                    torch.cat([weights, weights.new_ones(self.graph.num_nodes)]),
                    q,
                    positive,
                    negative,
                    steps=args.gpl_propagation_steps,
                    alpha=args.gpl_propagation_alpha,
                    kind=args.gpl_propagation,
                    form=args.gpl_lpl_form,
                    negative_weight=args.gpl_negative_weight,
                )["total"]
                gradients = torch.autograd.grad(loss, self.parameters)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        finally:
            for parameter in self.parameters:
                parameter.grad = None
                parameter.requires_grad_(False)
        return loss.detach()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the model's weights."""
        return packed(self.optimizer, _ADAM)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        unpack(self.optimizer, _ADAM, state)


class FreeEdges(LearnedEdges):
    """A logit for every edge, or for both directions of it; for the graph at hand alone."""

    def __init__(self, graph: PUGraph, args: Any) -> None:
        self.places, number = _places(graph, tied=args.gpl_tie_directions)
        start = torch.full((number,), float(args.gpl_edge_start), device=graph.x.device)
        self.logits = nn.Parameter(start, requires_grad=False)
        super().__init__(graph, [self.logits], args)

    def scores(self) -> Tensor:
        return self.logits[self.places]

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"gpl_edge_logits": self.logits.detach()}

    def load_state(self, state: dict[str, Any]) -> None:
        found, expected = state["gpl_edge_logits"].shape, self.logits.shape
        if found != expected:
            raise ValueError(
                f"resume_from_checkpoint: found {found[0]} edges, allowed are the {expected[0]} of train_dataset"
            )
        self.logits.data.copy_(state["gpl_edge_logits"])
        super().load_state(state)


def _places(graph: PUGraph, *, tied: bool) -> tuple[Tensor, int]:
    """Which logit an edge has, `[M]`, and how many there are; edges that are there twice share one, too, if tied."""
    source, target = graph.edge_index
    if not tied:
        return torch.arange(len(source), device=source.device), len(source)
    keys = torch.minimum(source, target) * graph.num_nodes + torch.maximum(source, target)
    known, places = keys.unique(return_inverse=True)
    return places, len(known)


class ScoredEdges(LearnedEdges):
    """Logits by the model's scorer, which is saved with it and works on other graphs."""

    def __init__(self, graph: PUGraph, args: Any, model: Any) -> None:
        self.model = model
        super().__init__(graph, model.edge_scorer.parameters(), args)

    def scores(self) -> Tensor:
        with evaluation_mode(self.model):
            scores: Tensor = self.model.edge_scores(self.graph.x, self.graph.edge_index)
        return scores
