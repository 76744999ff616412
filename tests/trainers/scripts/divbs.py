"""DivBS on a tiny ViT or on sequences of different lengths; dies within scoring pass `options["kill_scoring"]`."""

import os
import signal
from dataclasses import dataclass
from typing import Any

import mola
import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from train import vit
from transformers import LlamaConfig, LlamaForCausalLM

from hf_ext.trainers import DivBSArguments, DivBSConfig, DivBSMixin, DivBSTrainer, MoLATrainer, MoLATrainingConfig
from hf_ext.trainers.divbs.scoring import Scores


class OverMoLA(DivBSMixin, MoLATrainer):
    pass


@dataclass
class OverMoLAConfig(DivBSArguments, MoLATrainingConfig):
    pass


class Padding:
    """Pads to the longest of the batch, so that processes have batches of different lengths."""

    def __call__(self, rows: list[Any]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = [list(row["input_ids"]) for row in rows]
        padded = {
            "input_ids": [row + [0] * (longest - len(row)) for row in ids],
            "labels": [row + [-100] * (longest - len(row)) for row in ids],
            "attention_mask": [[1] * len(row) + [0] * (longest - len(row)) for row in ids],
        }
        return {name: torch.tensor(values) for name, values in padded.items()}


def sequences() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset.from_dict({"input_ids": [rng.integers(3, 30, rng.integers(3, 12)).tolist() for _ in range(48)]})


def build(options: dict[str, Any]) -> tuple[type[Any], type[Any], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""

    class Killed(DivBSTrainer):
        passes = 0

        def _score(self, *args: Any) -> Scores:
            self.passes += 1
            if self.passes == options.get("kill_scoring"):
                self._head().register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            return super()._score(*args)

    if "adapter" in options:
        return OverMoLA, OverMoLAConfig, mola.build(options)[2]
    if not options.get("sequences"):
        return Killed, DivBSConfig, {"model": vit(options)}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=2, pad_token_id=0, **sizes))
    rows = sequences()
    parts = {"model": model, "train_dataset": rows, "eval_dataset": rows, "data_collator": Padding()}
    return Killed, DivBSConfig, parts
