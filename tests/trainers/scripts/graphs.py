"""What `torch.compile` makes of a model in training, and what goes around it."""

from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import TrainerCallback


class Graphs(TrainerCallback):
    """Counts graphs after every update, and calls of the model that none of them makes.

    Args:
        model: as a Trainer is given it.
    """

    def __init__(self, model: nn.Module) -> None:
        torch._dynamo.reset()  # what earlier runs have compiled is used again in none, and counts in no limit
        counters.clear()
        self.after_updates: list[int] = []
        self.bare = {"training": 0, "apart": 0}
        model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():  # within a graph this is true, and the rest no part of it
            self.bare["training" if torch.is_grad_enabled() else "apart"] += 1

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.after_updates.append(counters["stats"]["unique_graphs"])

    def counted(self) -> dict[str, Any]:
        """Graphs after every update; calls beside them, with gradients and without; why a call has several graphs."""
        breaks = [reason.partition("\n")[0] for reason in counters["graph_break"]]
        return {"graphs": self.after_updates, "bare": dict(self.bare), "breaks": breaks}
