"""DISAM on a tiny ViT, or on a language model whose first and last layer have the same weights."""

import os
import signal
from dataclasses import dataclass
from typing import Any

import mola
import numpy as np
import torch
from datasets import Dataset
from train import vit
from transformers import LlamaConfig, LlamaForCausalLM

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


def tied() -> dict[str, Any]:
    """A language model with one matrix for both ends, and sequences of three domains."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=30, num_key_value_heads=2, tie_word_embeddings=True, **sizes))
    ids = np.random.default_rng(0).integers(0, 30, (48, 7))
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids, "domain_ids": np.arange(48) % 3})
    return {"model": model, "train_dataset": rows, "eval_dataset": rows.select(range(20))}


def build(options: dict[str, Any]) -> tuple[type[Any], type[Any], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    if options.get("tied"):
        return DISAMTrainer, DISAMConfig, tied()
    if "adapter" in options:
        return OverMoLA, OverMoLAConfig, mola.build(options)[2]
    return KilledInPass if options.get("kill_in_pass") else DISAMTrainer, DISAMConfig, {"model": vit(options)}
