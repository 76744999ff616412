"""Tiny models and data for trainer tests."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import ViTConfig, ViTForImageClassification


@pytest.fixture
def vit() -> Callable[..., ViTForImageClassification]:
    """A tiny ViT, the same at every call."""

    def make(seed: int = 0, **config: Any) -> ViTForImageClassification:
        torch.manual_seed(seed)
        sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
        layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 5}
        return ViTForImageClassification(ViTConfig(**{**sizes, **layers, **config}))

    return make


@pytest.fixture
def data() -> Dataset:
    """48 random images of three tasks of different sizes."""
    rng = np.random.default_rng(0)
    columns = {
        "pixel_values": rng.normal(size=(48, 1, 8, 8)).astype("float32"),
        "labels": rng.integers(0, 5, 48),
        "task_ids": rng.choice(3, 48, p=[0.6, 0.3, 0.1]),
    }
    return Dataset.from_dict(columns).with_format("torch")
