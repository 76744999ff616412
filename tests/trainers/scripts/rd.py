"""RD around a tiny ViT."""

from typing import Any

import torch
from torch import nn
from train import vit

from hf_ext.models import RDForImageClassification
from hf_ext.trainers import RDTrainer, RDTrainingConfig


class Compared(RDTrainer):
    """Its evaluation tells the accuracies of student and teacher too."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        found = super().evaluate(*args, **kwargs)
        return found | {name: value for name, value in self.compare_with_teacher().items() if "accuracy" in name}


def build(options: dict[str, Any]) -> tuple[type[RDTrainer], type[RDTrainingConfig], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    student = vit(options)
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.BatchNorm1d(12))
    model = RDForImageClassification.from_student(student, teacher, teacher_width=12)
    return Compared, RDTrainingConfig, {"model": model}
