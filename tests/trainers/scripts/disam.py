"""DISAM on a tiny ViT."""

import os
import signal
from dataclasses import dataclass
from typing import Any

import mola
from train import vit

from hf_ext.trainers import DISAMArguments, DISAMConfig, DISAMMixin, DISAMTrainer, MoLATrainer, MoLATrainingConfig


class KilledInPass(DISAMTrainer):
    """Dies in the fifth update, at the perturbed weights."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4 and self._unperturbed:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute_loss(*args, **kwargs)


class OverMoLA(DISAMMixin, MoLATrainer):
    pass


@dataclass
class OverMoLAConfig(DISAMArguments, MoLATrainingConfig):
    pass


def build(options: dict[str, Any]) -> tuple[type[Any], type[Any], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    if "adapter" in options:
        return OverMoLA, OverMoLAConfig, mola.build(options)[2]
    return KilledInPass if options.get("kill_in_pass") else DISAMTrainer, DISAMConfig, {"model": vit(options)}
