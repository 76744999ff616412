"""FER matchers on a tiny ViT, of whose ten classes the first is neutral."""

from typing import Any

import torch
from train import vit

from hf_ext.models import FERForImageClassification
from hf_ext.trainers import FERTrainer, FERTrainingConfig


def build(options: dict[str, Any]) -> tuple[type[FERTrainer], type[FERTrainingConfig], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    texts = torch.randn(10, 12, generator=torch.Generator().manual_seed(5))
    names = ["neutral", *map(str, range(1, 10))]
    vision = vit(options)
    torch.manual_seed(0)
    model = FERForImageClassification.from_backbones(
        _with_pooler(vision), lambda _: texts, names, logit_scale=10.0, learn_logit_scale=True
    )
    return FERTrainer, FERTrainingConfig, {"model": model}


def _with_pooler(classifier: Any) -> Any:
    from transformers import ViTModel

    torch.manual_seed(0)
    return ViTModel(classifier.config)
