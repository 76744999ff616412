"""The FER matcher's updates against the equations, written out here face by face and pair by pair."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from hf_ext.models import FERForImageClassification
from hf_ext.trainers import FERTrainer, FERTrainingConfig

RATE, SCALE = 0.1, 5.0
LAMBDA_S, LAMBDA_T, LAMBDA_C = 0.8, 0.5, 1.5
NAMES = ["happy", "neutral", "sad", "angry"]
NEUTRAL = 1
#: of 12 faces
LABELS = {
    "mixed": [0, 1, 2, 3, 1, 0, 2, 2, 1, 3, 0, 1],
    "halves": [
        0,
        2,
        2,
        3,
        0,
        3,
        1,
        1,
        1,
        2,
        1,
        1,
    ],  # the first without neutral faces, the second nearly of nothing else
    "a half all neutral": [0, 1, 2, 3, 0, 3, *[1] * 6],
    "none neutral": [0, 2, 2, 3, 0, 3, 3, 2, 0, 0, 3, 2],
}


@pytest.fixture
def model() -> FERForImageClassification:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
    }
    vision = ViTModel(ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))
    texts = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
    return FERForImageClassification.from_backbones(vision, lambda _: texts, NAMES, logit_scale=SCALE).double()


def _unit(vector: Tensor) -> Tensor:
    return vector / (vector @ vector).sqrt()


def _loss(model: FERForImageClassification, faces: Tensor, labels: list[int], pairs: str) -> Any:
    texts = model.classifier.text_features
    features = model.fer(faces).pooler_output
    neutral = model.transformation(features)
    match: Any = 0
    for f, y in zip(features, labels, strict=True):
        logits = torch.stack([SCALE * _unit(f) @ _unit(text) for text in texts])
        match = match + logits.exp().sum().log() - logits[y]
    emotional = [i for i, y in enumerate(labels) if y != NEUTRAL]
    transform: Any = 0
    for i in emotional:
        direction = texts[labels[i]] - texts[NEUTRAL]
        transform = transform + 1 - _unit(features[i] - neutral[i]) @ _unit(direction)
    contrast: Any = 0
    both = [(i, j) for i in emotional for j in emotional if pairs == "all" or i == j]
    for i, j in both:
        anchor = _unit(texts[labels[i]])
        contrast = contrast + 2 - anchor @ _unit(features[j]) + anchor @ _unit(neutral[j])
    return LAMBDA_S * match / len(labels) + LAMBDA_T * transform / len(emotional) + LAMBDA_C * contrast / len(both)


@pytest.mark.parametrize(
    ("kind", "steps", "pairs"),
    [("none neutral", 1, "all"), ("mixed", 2, "all"), ("a half all neutral", 2, "all"), ("halves", 2, "paired")],
)
def test_two_updates(
    kind: str,
    steps: int,
    pairs: Any,
    model: FERForImageClassification,
    data: Dataset,
    plain_sgd: dict[str, Any],
    difference: Callable[[nn.Module, nn.Module], float],
) -> None:
    """Every term is that of the whole update, whatever the micro-batches hold."""
    by_hand, before = copy.deepcopy(model), copy.deepcopy(model)
    faces, labels = data[:12]["pixel_values"].double(), LABELS[kind]
    rows: Any = [{"pixel_values": face, "labels": torch.tensor(y)} for face, y in zip(faces, labels, strict=True)]
    arguments = FERTrainingConfig(
        **plain_sgd,
        max_steps=2,
        per_device_train_batch_size=12 // steps,
        gradient_accumulation_steps=steps,
        fer_contrast_pairs=pairs,
        fer_lambda_s=LAMBDA_S,
        fer_lambda_t=LAMBDA_T,
        fer_lambda_c=LAMBDA_C,
    )
    FERTrainer(model, arguments, train_dataset=rows).train()
    for _ in range(2):
        params = list(by_hand.parameters())
        grads = torch.autograd.grad(_loss(by_hand, faces, labels, pairs), params, allow_unused=True)
        with torch.no_grad():
            for param, grad in zip(params, grads, strict=True):
                param.sub_(0 if grad is None else RATE * grad)
    assert difference(model, by_hand) < 1e-12
    assert difference(model, before) > 1e-3
