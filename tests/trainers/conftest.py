"""Tiny models and data for trainer tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
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


class Classifier(nn.Module):
    """64 inputs, 6 hidden units, 5 classes, in float64: the loss is a batch mean, which knows of no accumulation."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.classifier = nn.Linear(64, 6), nn.Linear(6, 5)
        self.double()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(self.hidden(pixel_values.flatten(1).double()).tanh())
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Accumulating(Classifier):
    """The same, as models of transformers do it: the loss is a sum over `num_items_in_batch`, if that is given."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        outputs = super().forward(pixel_values, labels)
        number = kwargs.get("num_items_in_batch")
        if labels is not None and number is not None:
            outputs["loss"] = F.cross_entropy(outputs["logits"], labels, reduction="sum") / number
        return outputs


@pytest.fixture
def classifier() -> Callable[..., Classifier]:
    """A classifier in float64, the same at every call, to be trained by hand as well."""

    def make(*, accumulating: bool = False) -> Classifier:
        torch.manual_seed(0)
        return Accumulating() if accumulating else Classifier()

    return make


@pytest.fixture
def plain_sgd(tmp_path: Path) -> dict[str, Any]:
    """Arguments of plain SGD with a constant rate of 0.1, unclipped, through the rows in their order."""
    sgd = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    return {"output_dir": str(tmp_path), "train_sampling_strategy": "sequential", **sgd, **quiet}


@pytest.fixture
def difference() -> Callable[[nn.Module, nn.Module], float]:
    """The largest difference between the weights and buffers of two models."""

    def largest(one: nn.Module, other: nn.Module) -> float:
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        return max((a.double() - b.double()).abs().max().item() for a, b in pairs)

    return largest
