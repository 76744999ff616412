"""RD around a tiny ViT."""

from typing import Any

import torch
from torch import nn
from train import vit

from hf_ext.models import RDForImageClassification
from hf_ext.trainers import RDTrainer, RDTrainingConfig


def build(options: dict[str, Any]) -> tuple[type[RDTrainer], type[RDTrainingConfig], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    student = vit(options)
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.BatchNorm1d(12))
    model = RDForImageClassification.from_student(student, teacher, teacher_width=12)
    return RDTrainer, RDTrainingConfig, {"model": model}
