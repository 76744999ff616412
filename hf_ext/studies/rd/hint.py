"""Hints, a baseline of RD's study: the student's features are to predict the teacher's.

FitNets (Romero et al., ICLR 2015, arXiv:1412.6550), of the last features, and in one stage with the labels.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ResNetForImageClassification

WEIGHT = 1.0  # coefficient of the squared error; that of the cross-entropy is 1


class Hinted(nn.Module):
    """A student and a linear regressor from its features to the teacher's.

    Args:
        student: what is trained and judged.
        teacher_width: of the teacher's features.
    """

    def __init__(self, student: ResNetForImageClassification, teacher_width: int) -> None:
        super().__init__()
        self.student = student
        config: Any = student.config
        self.regressor = nn.Linear(config.hidden_sizes[-1], teacher_width)

    def forward(
        self, pixel_values: Tensor, labels: Tensor, teacher_features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The student's logits and a loss, without the teacher's features the cross-entropy alone."""
        features = self.student.resnet(pixel_values).pooler_output.flatten(1)
        logits = self.student.classifier(features)
        loss = F.cross_entropy(logits, labels)
        if teacher_features is not None:
            loss = loss + WEIGHT * F.mse_loss(self.regressor(features), teacher_features)
        return {"loss": loss, "logits": logits}
