"""RD's update next to the student's own and to the teacher's forward pass; inference next to the bare student."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, ViTModel

from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step
from hf_ext.benchmarks.training import images, inference, update, vit
from hf_ext.models import RDForImageClassification
from hf_ext.trainers import RDTrainer, RDTrainingConfig

ROWS, CLASSES, WIDTH = 32, 7, 512
SETTING = (
    f"a student of 5 million weights beside a teacher of 13 million, ViTs both, {ROWS} images of 64 x 64 pixels, "
    f"{CLASSES} classes"
)
STUDENT, BOTH, RD, CACHED = "student alone", "student + teacher forward", "RD", "RD, features computed before"
BARE, WHOLE = "bare student", "RD model"


def _student(quick: bool) -> Any:
    return vit(quick, num_labels=CLASSES)


def _teacher(quick: bool) -> Any:
    sizes = {} if quick else {"hidden_size": WIDTH, "num_hidden_layers": 4, "intermediate_size": 4 * WIDTH}
    return ViTModel(vit(quick, **sizes).config).eval()


def _model(quick: bool) -> RDForImageClassification:
    teacher = _teacher(quick)
    return RDForImageClassification.from_student(_student(quick), teacher, teacher_width=teacher.config.hidden_size)


def _batch(device: torch.device, quick: bool, **columns: torch.Tensor) -> dict[str, torch.Tensor]:
    batch = images(8 if quick else ROWS, classes=CLASSES) | columns
    return {name: values.to(device) for name, values in batch.items() if "ids" not in name}


def _alone(device: torch.device, quick: bool) -> Step:
    return update(Trainer, TrainingArguments, _student(quick), [_batch(device, quick)], device)


def _with_forward(device: torch.device, quick: bool) -> Step:
    batch, teacher, alone = _batch(device, quick), _teacher(quick).to(device), _alone(device, quick)

    def step() -> None:
        with torch.no_grad():
            teacher(batch["pixel_values"])
        alone()

    return step


def _whole(device: torch.device, quick: bool) -> Step:
    return update(RDTrainer, RDTrainingConfig, _model(quick), [_batch(device, quick)], device)


def _cached(device: torch.device, quick: bool) -> Step:
    model = _model(quick)
    features = torch.randn(8 if quick else ROWS, model.config.teacher_width)
    batch = _batch(device, quick, teacher_features=features)
    return update(RDTrainer, RDTrainingConfig, model, [batch], device)


def _inference(make_model: Callable[[bool], nn.Module]) -> Callable[[torch.device, bool], Step]:
    return lambda device, quick: inference(make_model(quick), _batch(device, quick)["pixel_values"], device)


UPDATE = Benchmark(
    name="rd-step",
    title="An update of one batch",
    setting=f"{SETTING}, AdamW, gradients clipped",
    contenders=(
        Contender(STUDENT, _alone),
        Contender(BOTH, _with_forward),
        Contender(RD, _whole, is_method=True),
        Contender(CACHED, _cached, is_method=True),
    ),
    reference=STUDENT,
    bars=(Bar(RD, BOTH, 1.02), Bar(CACHED, STUDENT, 1.05)),
)
INFERENCE = Benchmark(
    name="rd-inference",
    title="Inference",
    setting=SETTING,
    contenders=(Contender(BARE, _inference(_student)), Contender(WHOLE, _inference(_model), is_method=True)),
    reference=BARE,
    bars=(Bar(WHOLE, BARE, 1.01),),
)

BENCHMARKS = (UPDATE, INFERENCE)
