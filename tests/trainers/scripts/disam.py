"""DISAM on a tiny ViT."""

import os
import signal
from typing import Any

from train import vit

from hf_ext.trainers import DISAMConfig, DISAMTrainer


class KilledInPass(DISAMTrainer):
    """Dies in the fifth update, at the perturbed weights."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4 and self._clean:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute_loss(*args, **kwargs)


def build(options: dict[str, Any]) -> tuple[type[DISAMTrainer], type[DISAMConfig], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    return KilledInPass if options.get("kill_in_pass") else DISAMTrainer, DISAMConfig, {"model": vit(options)}
