"""CausalD: two teachers of different architectures, one with a direct path, and a smaller student."""

import os
import signal
from typing import Any

import numpy as np
import torch

from hf_ext.data.interactions import Interactions, ItemTable, NextItems, leave_one_out
from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem
from hf_ext.trainers import CausalDConfig, CausalDTrainer
from hf_ext.trainers.causald import effects


def split() -> Any:
    """24 users with 5 to 9 events among 20 items."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 10, 24))])
    items = ItemTable([f"item {row}" for row in range(1, 21)], None)
    rows = rng.integers(1, 21, offsets[-1])
    return leave_one_out(Interactions([f"user {user}" for user in range(24)], items, offsets, rows, None))


def recommender(architecture: str, seed: int, **config: Any) -> SequentialRecommenderForNextItem:
    torch.manual_seed(seed)
    sizes = {"num_items": 20, "hidden_size": 8, "max_length": 6, "num_hidden_layers": 1, "num_attention_heads": 1}
    made = SequentialRecommenderConfig(architecture=architecture, **{**sizes, "dropout": 0.0, **config})
    return SequentialRecommenderForNextItem(made)


class KilledWhileCaching(CausalDTrainer):
    """Dies when the first teacher's effect is written and the second one's is not yet whole."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        effect, asked = effects.FrontDoorSum.effect, []

        def counted(total: Any) -> Any:
            asked.append(total)
            if len(asked) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return effect(total)

        effects.FrontDoorSum.effect = counted
        return super().train(*args, **kwargs)


def build(options: dict[str, Any]) -> tuple[type[CausalDTrainer], type[CausalDConfig], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    parts = split()
    teachers = [recommender("sasrec", 1, direct_rank=2), recommender("deepfm", 2)]
    data = {
        "train_dataset": NextItems(parts, max_length=6),
        "eval_dataset": NextItems(parts, "validation", max_length=6),
    }
    student = recommender(options.get("student", "gru"), 3, dropout=options.get("dropout", 0.0), num_hidden_layers=2)
    kind = KilledWhileCaching if options.get("kill_while_caching") else CausalDTrainer
    return kind, CausalDConfig, {"model": student, "teachers": teachers, **data}
