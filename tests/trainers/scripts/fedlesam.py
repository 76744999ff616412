"""FedLESAM on a tiny ViT, in a round that has an earlier model and controls."""

import os
import signal
from typing import Any

import torch
from torch import Tensor
from train import vit

from hf_ext.trainers.federated import FedLESAMConfig, FedLESAMTrainer
from hf_ext.trainers.federated.rounds import Round


def _moved(weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}


class InRound(FedLESAMTrainer):
    """Always the same round."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        received = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        config = {"proximal-mu": 0.1, "fedlesam-variant": self.args.fedlesam_variant}
        memory = {"received": _moved(received, 1), "control": _moved(received, 2)}
        broadcast = {"control": _moved(received, 3)}
        self.begin_round(Round(2, 1, config, received, broadcast, memory))
        return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """With the length of what is kept and sent, under a name that is compared."""
        given = self.end_round()
        entries = [*given.memory.values(), *given.sent.values()]
        sums = torch.stack([value.double().square().sum() for entry in entries for value in entry.values()])
        return super().evaluate(*args, **kwargs) | {"kept_for_loss": float(sums.sum().sqrt())}


class KilledInUpdate(InRound):
    """Dies in the fifth update, at the moved weights."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4 and self._unperturbed:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute_loss(*args, **kwargs)


def build(options: dict[str, Any]) -> tuple[type[Any], type[Any], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    return KilledInUpdate if options.get("kill_in_update") else InRound, FedLESAMConfig, {"model": vit(options)}
