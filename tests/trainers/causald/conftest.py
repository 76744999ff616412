"""Small data of next items, recommenders, and a trainer of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_ext.data.interactions import Interactions, ItemTable, NextItems, SplitInteractions, leave_one_out
from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem
from hf_ext.trainers import CausalDConfig, CausalDMixin, CausalDTrainer

ITEMS, USERS, LENGTH = 20, 12, 6


@pytest.fixture
def split() -> Callable[..., SplitInteractions]:
    """Users with 4 to 9 events; `future` changes those that are to be validated and tested on."""

    def make(*, future: int = 0) -> SplitInteractions:
        rng = np.random.default_rng(0)
        offsets = np.concatenate([[0], np.cumsum(rng.integers(4, 10, USERS))])
        rows = rng.integers(1, ITEMS + 1, offsets[-1])
        for end in offsets[1:]:
            rows[end - 2 : end] = 1 + (rows[end - 2 : end] + future) % ITEMS
        items = ItemTable([f"item {row}" for row in range(1, ITEMS + 1)], None)
        return leave_one_out(Interactions([f"user {user}" for user in range(USERS)], items, offsets, rows, None))

    return make


@pytest.fixture
def data(split: Callable[..., SplitInteractions]) -> NextItems:
    return NextItems(split(), max_length=LENGTH)


@pytest.fixture
def recommender() -> Callable[..., SequentialRecommenderForNextItem]:
    """The same at every call, with weights that make it prefer something."""

    def make(architecture: str = "gru", seed: int = 0, **config: Any) -> SequentialRecommenderForNextItem:
        torch.manual_seed(seed)
        sizes = {"num_items": ITEMS, "hidden_size": 8, "max_length": LENGTH, "num_hidden_layers": 1}
        options = {**sizes, "num_attention_heads": 1, "dropout": 0.0, "initializer_range": 0.5, **config}
        return SequentialRecommenderForNextItem(SequentialRecommenderConfig(architecture=architecture, **options))

    return make


@pytest.fixture
def make_trainer(tmp_path: Path, data: NextItems, recommender: Callable[..., Any]) -> Callable[..., Any]:
    """Of a student that is a GRU, by plain SGD; `extra` are arguments of training or of the trainer."""

    def make(model: Any = None, kind: Any = CausalDTrainer, **extra: Any) -> Trainer:
        config: Any = CausalDConfig if issubclass(kind, CausalDMixin) else TrainingArguments
        defaults = {"output_dir": str(tmp_path), "max_steps": 3, "learning_rate": 0.5, "optim": "sgd"}
        quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
        own = {"causald_num_candidates": 5} if config is CausalDConfig else {}
        options = {**defaults, **quiet, **own, "per_device_train_batch_size": 8, "max_grad_norm": 0.0}
        names = config.__dataclass_fields__
        options |= {name: extra.pop(name) for name in list(extra) if name in names}
        rows = extra.pop("train_dataset", data)
        model = recommender() if model is None else model
        return kind(model=model, args=config(**options), train_dataset=rows, **extra)

    return make
