"""The FER matcher next to the same backbone with a linear head: an update, and inference."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, ViTModel

from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step
from hf_ext.benchmarks.training import images, inference, update, vit
from hf_ext.models import FERForImageClassification
from hf_ext.trainers import FERTrainer, FERTrainingConfig

ROWS, CLASSES, WIDTH = 32, 7, 512
SETTING = f"a ViT of 5 million weights, {ROWS} images of 64 x 64 pixels, {CLASSES} classes, texts of width {WIDTH}"
HEAD, PLAIN, TRAINER = "linear head, plain Trainer", "FER, plain Trainer", "FER, FERTrainer"
BARE, MATCHER = "linear head", "FER"


def _head(quick: bool) -> nn.Module:
    return vit(quick, num_labels=CLASSES)


def _matcher(quick: bool) -> nn.Module:
    names = ["neutral", *map(str, range(1, CLASSES))]
    backbone = ViTModel(vit(quick).config)
    return FERForImageClassification.from_backbones(backbone, lambda texts: torch.randn(len(texts), WIDTH), names)


def _update(
    make_model: Callable[[bool], nn.Module], trainer: type[Trainer], arguments: type[TrainingArguments]
) -> Callable[[torch.device, bool], Step]:
    def make(device: torch.device, quick: bool) -> Step:
        batch = images(8 if quick else ROWS, classes=CLASSES)
        batches = [{name: values.to(device) for name, values in batch.items() if "ids" not in name}]
        return update(trainer, arguments, make_model(quick), batches, device)

    return make


def _inference(make_model: Callable[[bool], nn.Module]) -> Callable[[torch.device, bool], Step]:
    return lambda device, quick: inference(make_model(quick), images(8 if quick else ROWS)["pixel_values"], device)


UPDATE = Benchmark(
    name="fer-step",
    title="An update of one batch",
    setting=f"{SETTING}, AdamW, gradients clipped",
    contenders=(
        Contender(HEAD, _update(_head, Trainer, TrainingArguments)),
        Contender(PLAIN, _update(_matcher, Trainer, TrainingArguments), is_method=True),
        Contender(TRAINER, _update(_matcher, FERTrainer, FERTrainingConfig), is_method=True),
    ),
    reference=HEAD,
    bars=(Bar(PLAIN, HEAD, 1.02), Bar(TRAINER, HEAD, 1.02)),
)
INFERENCE = Benchmark(
    name="fer-inference",
    title="Inference",
    setting=SETTING,
    contenders=(Contender(BARE, _inference(_head)), Contender(MATCHER, _inference(_matcher), is_method=True)),
    reference=BARE,
    bars=(Bar(MATCHER, BARE, 1.01),),
)

BENCHMARKS = (UPDATE, INFERENCE)
