"""Tiny students of the kinds that differ, and a teacher."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

sys.path.insert(0, str(Path(__file__).parent))  # pytest's import mode adds no folders


def _resnet(**config: Any) -> PreTrainedModel:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, **config))


def _vit(**config: Any) -> PreTrainedModel:
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, **config))


def _timm(architecture: str = "test_resnet", **config: Any) -> PreTrainedModel:
    return TimmWrapperForImageClassification(TimmWrapperConfig(architecture=architecture, **config))


STUDENTS: dict[str, Callable[..., PreTrainedModel]] = {"resnet": _resnet, "vit": _vit, "timm": _timm}


@pytest.fixture(params=list(STUDENTS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def names() -> list[str]:
    return ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture
def make_student(names: list[str]) -> Callable[..., PreTrainedModel]:
    """A student of a kind, the same at every call, with five named classes; statistics of norms are no defaults."""

    def make(kind: str = "resnet", **config: Any) -> PreTrainedModel:
        torch.manual_seed(0)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        student = STUDENTS[kind](**{**labels, **config})
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            student.train()(torch.randn(8, config.get("num_channels", 3), 16, 16))
        return student.eval()

    return make


class Teacher(nn.Module):
    """Twelve features of an image, with a norm that keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 12, 4, stride=4)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(pixel_values)).mean((2, 3))


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(1)
    return Teacher()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {"pixel_values": torch.randn(8, 3, 16, 16, generator=generator), "labels": torch.arange(8) % 5}
