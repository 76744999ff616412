"""What happens once an epoch: edges, scores, prior, selection, guide; and all of it in a checkpoint."""

from typing import Any

import torch
from torch import Tensor

from hf_ext.functional import edge_homophily, rank_and_select
from hf_ext.trainers.gpl.edges import FreeEdges, LearnedEdges, ScoredEdges
from hf_ext.trainers.gpl.graph import PUGraph
from hf_ext.trainers.gpl.guide import Guide, compared, held_out_ranks
from hf_ext.trainers.gpl.passes import Operator, operator_of, scores_of
from hf_ext.trainers.gpl.prior import Interval, estimated_prior, prior_of_loss
from hf_ext.trainers.gpl.targets import Targets

#: objectives that rank the unlabelled nodes
RANKING = ("gpl", "rank")


class Epochs:
    """A run's epochs on one graph.

    In the warm-up every unlabelled node counts as negative. At its end it is decided who ranks (`gpl_guide`), and the
    prior is estimated. From then on, at the beginning of each epoch: steps of the edges down the label propagation
    loss of the last selection, scores of all nodes on the new weights, the prior (if each epoch has its own), and the
    selection that the epoch trains on.

    Nothing here draws from the training's random numbers, and all processes compute the same.

    Args:
        model: bare, on the device.
        graph: on the device.
        args: TrainingArguments with `GPLArguments`.
        batch_size: nodes of an update; None for all.
    """

    def __init__(self, model: Any, graph: PUGraph, args: Any, batch_size: int | None) -> None:
        self.model, self.graph, self.args, self._batch_size = model, graph, args, batch_size
        self.epoch = -1
        self.prior: float | None = None if isinstance(args.gpl_prior, str) else args.gpl_prior
        self.interval: Interval | None = None
        self.guide, self.edges = self._new_guide(), self._new_edges()
        #: of held-out positives against the unlabelled, once both networks are compared, and their difference's error
        self.aucs: dict[str, float] = {}
        #: numbers of every epoch since the warm-up
        self.curves: dict[str, list[float]] = {"epoch": [], "prior": [], "homophily": [], "mean_edge_weight": []}
        self.targets = self._targets(torch.zeros_like(graph.held_out), "sample")
        self._operator: Operator | None = None

    def _new_guide(self) -> Guide | None:
        if self.args.gpl_objective not in RANKING or self.args.gpl_guide == "self":
            return None
        return Guide(self.graph, self.model.config, self.args, self._batch_size)

    def _new_edges(self) -> LearnedEdges | None:
        if self.args.gpl_objective != "gpl" or self.args.gpl_edges == "none":
            return None
        if self.args.gpl_edges == "scorer":
            return ScoredEdges(self.graph, self.args, self.model)
        return FreeEdges(self.graph, self.args)

    def _targets(self, selected: Tensor, reduction: Any) -> Targets:
        return Targets(self.graph.labels, selected, reduction)

    # ---------------------------------------------------------------------------------------------- what holds now
    @property
    def warms_up(self) -> bool:
        """Whether every unlabelled node counts as negative in this epoch."""
        return self.args.gpl_objective == "naive" or self.epoch < self.args.gpl_warmup_epochs

    @property
    def loss_prior(self) -> float:
        """Share of positives in what the loss takes for unlabelled."""
        assert self.prior is not None
        return prior_of_loss(self.prior, self.graph)

    @torch.no_grad()
    def edge_weight(self) -> Tensor | None:
        """Weights of the graph's edges, `[M]`; None where all are 1."""
        return self.graph.edge_weight if self.edges is None else self.edges.weights()

    def operator(self) -> Operator:
        """What the model's layers sum messages with in this epoch."""
        if self._operator is None:
            self._operator = operator_of(self.model, self.graph, self.edge_weight())
        return self._operator

    def logits(self) -> Tensor:
        """Of the model on the present weights, `[N]`."""
        return scores_of(self.model, self.graph, self.operator())

    def _scorings(self) -> list[Tensor]:
        """Logits of those who rank, the network and the guide, `[N]` each; their mean ranks."""
        return [self.logits()] if self.guide is None else [self.logits(), self.guide.scores()]

    # ---------------------------------------------------------------------------------------------- an epoch
    def begin(self, epoch: int) -> dict[str, float | Tensor]:
        """What comes before an epoch's first update; returns what is to be logged.

        A run that goes on within an epoch has done so before it was interrupted.
        """
        if epoch == self.epoch:
            return {}
        self.epoch = epoch
        found: dict[str, float | Tensor] = {}
        if not self.warms_up:
            found = self._begin_ranked() if self.args.gpl_objective in RANKING else self._begin_risk()
        if self.guide is not None:
            self.guide.learn(self.targets, epoch)
        return found

    def _begin_risk(self) -> dict[str, float | Tensor]:
        if self._estimates:
            self._estimate(self._scorings())
        assert self.prior is not None
        return self._noted({"prior": self.prior})

    @property
    def _estimates(self) -> bool:
        return self.prior is None or (
            self.args.gpl_prior_update == "each_epoch" and isinstance(self.args.gpl_prior, str)
        )

    def _estimate(self, scorings: list[Tensor]) -> None:
        """By "bbe" the least of their estimates: but for chance, any scores' best bin gives more than the prior."""
        if self.args.gpl_prior != "bbe":
            scorings = [_mean(scorings)]
        estimates = [estimated_prior(scores, self.graph, self.args) for scores in scorings]
        self.prior, self.interval = min(estimates, key=lambda estimate: estimate[0])

    def _begin_ranked(self) -> dict[str, float | Tensor]:
        found: dict[str, float | Tensor] = {} if self.curves["epoch"] else self._end_warm_up()
        if self.edges is not None and (lpl := self._learn_edges(self.edges)) is not None:
            found["lpl"] = lpl
            self._estimate_and_select()
        elif self.curves["epoch"]:
            self._estimate_and_select()
        weights = self.edge_weight()
        assert self.prior is not None
        homophily = edge_homophily(self.graph.edge_index, self.targets.pseudo_labels(), edge_weight=weights)
        return found | self._noted(
            {
                "prior": self.prior,
                "pseudo_homophily": float(homophily),
                "mean_edge_weight": 1.0 if weights is None else float(weights.mean()),
                "selected_fraction": float(self.targets.selected.sum() / self.graph.unlabeled.sum()),
            }
        )

    def _end_warm_up(self) -> dict[str, float | Tensor]:
        """Prior, by both networks also where one is then dropped; who ranks; a first selection."""
        scorings = self._scorings()
        if self._estimates:
            self._estimate(scorings)
        found = self._compare(scorings)
        self._select(scorings if self.guide is not None else scorings[:1])
        return found

    def _compare(self, scorings: list[Tensor]) -> dict[str, float | Tensor]:
        """Who finds held-out positives better.

        With "auto" the guide stays if it does by more than a standard error, else edges do not learn.
        """
        if self.guide is None or not bool(self.graph.held_out.any()):
            return {}
        self.aucs = compared(*(held_out_ranks(one, self.graph.held_out, self.graph.hidden) for one in scorings))
        ahead = self.aucs["guide_auc"] - self.aucs["gnn_auc"]
        if self.args.gpl_guide == "auto" and ahead <= self.aucs["auc_error"]:
            self._drop_guide()
        return dict(self.aucs)

    def _drop_guide(self) -> None:
        self.guide = None
        if self.args.gpl_edges == "free":
            self.edges, self._operator = None, None

    def _learn_edges(self, edges: LearnedEdges) -> Tensor | None:
        if self.guide is None and self.args.gpl_guide == "auto":  # a scorer that stays as it is
            return None
        lpl = edges.learn(self.targets, self.loss_prior)
        self._operator = None
        return lpl

    def _estimate_and_select(self) -> None:
        scorings = self._scorings()
        if self._estimates:
            self._estimate(scorings)
        self._select(scorings)

    def _select(self, scorings: list[Tensor]) -> None:
        selected = rank_and_select(_mean(scorings), self.graph.unlabeled, prior=self.loss_prior)
        self.targets = self._targets(selected, self.args.gpl_reduction)

    def _noted(self, found: dict[str, float]) -> dict[str, float | Tensor]:
        noted = {
            "epoch": float(self.epoch),
            "prior": found["prior"],
            "homophily": found.get("pseudo_homophily"),
            "mean_edge_weight": found.get("mean_edge_weight"),
        }
        for name, value in noted.items():
            self.curves[name].append(float("nan") if value is None else value)
        return dict(found)

    # ---------------------------------------------------------------------------------------------- checkpoints
    def state(self) -> dict[str, Any]:
        """Tensors and JSON values."""
        state: dict[str, Any] = {
            "gpl_epoch": self.epoch,
            "gpl_prior": self.prior,
            "gpl_interval": self.interval,
            "gpl_aucs": self.aucs,
            "gpl_curves": self.curves,
            "gpl_guided": self.guide is not None,
            "gpl_learns": self.edges is not None,
            "gpl_reduction": self.targets.reduction,
            "gpl_selected": self.targets.selected,
        }
        for part in (self.guide, self.edges):
            state |= {} if part is None else part.state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave, of a run on this graph with these options.

        Raises:
            ValueError: a state of another graph.
        """
        check_state(state, self.graph)
        device = self.graph.x.device
        self.epoch, self.prior, self.aucs = state["gpl_epoch"], state["gpl_prior"], dict(state["gpl_aucs"])
        self.interval = None if state["gpl_interval"] is None else tuple(state["gpl_interval"])
        self.curves = {name: list(values) for name, values in state["gpl_curves"].items()}
        self.targets = self._targets(state["gpl_selected"].to(device), state["gpl_reduction"])
        self.guide = self._new_guide() if state["gpl_guided"] else None
        self.edges = self._new_edges() if state["gpl_learns"] else None
        for part in (self.guide, self.edges):
            if part is not None:
                part.load_state(state)
        self._operator = None


def _mean(scorings: list[Tensor]) -> Tensor:
    return torch.stack(scorings).mean(dim=0)


def check_state(state: dict[str, Any], graph: PUGraph) -> None:
    """Refuse what is no state of a run on this graph.

    Raises:
        ValueError: another number of nodes, or a checkpoint without such a state.
    """
    if "gpl_selected" not in state:
        raise ValueError("resume_from_checkpoint: found no state of GPL, allowed is a checkpoint of a GPLTrainer")
    if len(state["gpl_selected"]) != graph.num_nodes:
        raise ValueError(
            f"resume_from_checkpoint: found {len(state['gpl_selected'])} nodes, allowed are the {graph.num_nodes} of "
            "train_dataset"
        )
