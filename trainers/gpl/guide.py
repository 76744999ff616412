"""A network without edges that is trained beside the graph's own, and which of the two finds positives better."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_ext.functional.losses import IGNORED_LABEL
from hf_ext.models.graph import GraphPUConfig, GraphPUModel
from hf_ext.trainers.gpl.graph import PUGraph
from hf_ext.trainers.gpl.optimizer_state import packed, unpack
from hf_ext.trainers.gpl.targets import Targets
from hf_ext.trainers.passes import evaluation_mode, same_randomness

_ADAM, _WEIGHTS = "gpl_guide_adam", "gpl_guide."
_LAYERS = 2
_EPOCHS = 2**20  # more than there are, for random numbers that differ between seeds


class Guide:
    """A multilayer perceptron of the features, as wide as the model, with an Adam of its own.

    Every process trains the same one. What it draws it draws from the seed and the epoch, so that a resumed run draws
    the same, and leaves the training's own random numbers alone.

    Args:
        graph: on the device.
        config: of the model: its width and dropout are the guide's, too.
        args: TrainingArguments with `GPLArguments`: learning rate, weight decay, seed.
        batch_size: nodes of a step; None for all.
    """

    def __init__(self, graph: PUGraph, config: Any, args: Any, batch_size: int | None) -> None:
        self.graph, self.args, self.batch_size = graph, args, batch_size
        own = GraphPUConfig(
            conv="mlp",
            num_features=config.num_features,
            hidden_size=config.hidden_size,
            num_layers=_LAYERS,
            dropout=config.dropout,
        )
        with _drawing(graph.x.device, args.gpl_seed, 0):
            model: Any = GraphPUModel(own)
        self.model = model.to(graph.x.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay
        )

    def learn(self, targets: Targets, epoch: int) -> None:
        """An epoch: one step, or as many as there are batches."""
        nodes = (targets.labels != IGNORED_LABEL).nonzero()[:, 0]
        self.model.train()
        with _drawing(self.graph.x.device, self.args.gpl_seed, epoch + 1), torch.enable_grad():
            for batch in self._batches(nodes):
                loss = targets.losses(self.model(self.graph.x[batch]).logits, batch)["total"]
                self.optimizer.zero_grad()
                (loss * len(nodes) / len(batch)).backward()
                self.optimizer.step()

    def _batches(self, nodes: Tensor) -> Iterator[Tensor]:
        if self.batch_size is None:
            yield nodes
            return
        order = torch.randperm(len(nodes), device=nodes.device)
        yield from nodes[order].split(self.batch_size)

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Logits of all nodes, `[N]`, float32."""
        with evaluation_mode(self.model):
            logits: Tensor = self.model(self.graph.x).logits
        return logits.float()

    def state(self) -> dict[str, Tensor]:
        """Weights and moments."""
        weights = {f"{_WEIGHTS}{name}": value for name, value in self.model.state_dict().items()}
        return weights | packed(self.optimizer, _ADAM)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        saved = {name.removeprefix(_WEIGHTS): value for name, value in state.items() if name.startswith(_WEIGHTS)}
        self.model.load_state_dict(saved)
        unpack(self.optimizer, _ADAM, state)


@contextmanager
def _drawing(device: torch.device, seed: int, number: int) -> Iterator[None]:
    """What is drawn inside depends on both alone, and what is drawn afterwards does not depend on it."""
    seed = (seed * _EPOCHS + number) % 2**63
    with same_randomness(device):
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        torch.default_generator.manual_seed(seed)
        yield


def held_out_ranks(scores: Tensor, held_out: Tensor, hidden: Tensor) -> Tensor:
    """For every held-out positive the share of unlabelled nodes below it, and half of those level with it, `[n]`.

    Their mean is the AUC.

    Args:
        scores: `[N]`.
        held_out, hidden: bool `[N]`, not empty. Positives among the hidden nodes keep the ranks below 1.
    """
    positives, others = scores[held_out], scores[hidden].sort().values
    below, not_above = (torch.searchsorted(others, positives, right=right) for right in (False, True))
    return (below + not_above).double() / (2 * len(others))


def compared(gnn: Tensor, guide: Tensor) -> dict[str, float]:
    """Both networks' AUCs and the standard error of their difference, from the same positives' ranks `[n]`.

    From one positive nothing is to be told: the error is 1.
    """
    error = (gnn - guide).std() / len(gnn) ** 0.5 if len(gnn) > 1 else 1.0
    return {"gnn_auc": float(gnn.mean()), "guide_auc": float(guide.mean()), "auc_error": float(error)}
