"""What students of RD's study learn logits from: a probe of the teacher's features, a teacher tuned by LoRA."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import ResNetForImageClassification, Trainer, TrainingArguments

from hf_ext._runs import freeze_statistics, quiet
from hf_ext.studies.rd.data import TEACHER, Part

RANK, SCALE = 4, 4  # of the adapters


def probe(train: Part, c: float) -> nn.Linear:
    """A linear classifier of the teacher's features."""
    fitted = LogisticRegression(C=c, max_iter=1000).fit(train.teacher_features.numpy(), train.labels.numpy())
    weight, bias = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
    if len(weight) == 1:  # of two classes, the second one's logit
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear.requires_grad_(False)


def lora_trainer(folder: Path, train: Part, args: TrainingArguments) -> Trainer:
    """Trains adapters in all convolutions of the teacher that `prepare` has left, and a new head."""
    torch.manual_seed(args.seed)
    teacher = ResNetForImageClassification.from_pretrained(folder / TEACHER, num_labels=train.classes)
    freeze_statistics(teacher)
    config = LoraConfig(
        r=RANK, lora_alpha=SCALE * RANK, target_modules=["convolution"], modules_to_save=["classifier"]
    )
    rows = train.rows(with_features=False)
    return quiet(Trainer(model=get_peft_model(teacher, config), args=args, train_dataset=rows))


def as_tuned(train: Part, tuned: Any) -> tuple[Part, nn.Module]:
    """The rows with the tuned teacher's features, and its head, which makes logits of them."""
    network = tuned.get_base_model().eval()
    with torch.no_grad():
        features = network.resnet(train.pixel_values).pooler_output.flatten(1)
    return replace(train, teacher_features=features), network.classifier
