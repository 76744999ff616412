"""TARF on a tiny ViT: two updates of each phase."""

import os
import signal
from typing import Any

from train import vit

from hf_ext.trainers import TARFConfig, TARFTrainer


class KilledWhileIdentifying(TARFTrainer):
    """Dies between the first remaining rows that are looked at again at t1 and the last."""

    identifying = False
    looked_at = 0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self.identifying = self.state.global_step > 0  # before, the losses of the original model are measured
        found = super().get_batch_samples(*args, **kwargs)
        self.identifying = False
        return found

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if self.identifying:
            self.looked_at += 1
            if self.looked_at == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        return super()._prepare_inputs(inputs)


def build(options: dict[str, Any]) -> tuple[type[TARFTrainer], type[TARFConfig], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    plan: dict[str, Any] = {
        "tarf_selection": "groups",
        "tarf_k": 0.5,
        "tarf_t0": 0.5,
        "tarf_t1": 0.5,
        "tarf_anneal_by": "step",
        "per_device_eval_batch_size": 8,
    }
    options["training"] = {**plan, **options["training"]}
    kind = KilledWhileIdentifying if options.get("kill_while_identifying") else TARFTrainer
    return kind, TARFConfig, {"model": vit(options), "forget_dataset": list(range(16))}
