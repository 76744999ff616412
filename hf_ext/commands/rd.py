"""`hf-ext train rd` and `hf-ext demo rd`."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from PIL.Image import Resampling
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessor,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
)

from hf_ext import _small_models
from hf_ext._models import unwrapped
from hf_ext._runs import accuracy_on
from hf_ext._small_models import class_names
from hf_ext.commands.demo import DemoRun, Scored, classifier_example, run_demo
from hf_ext.commands.loading import ModelArguments, OwnDataArguments, accuracy
from hf_ext.commands.lora import PartLora
from hf_ext.commands.places import check_place, naming_the_images, shape_of
from hf_ext.commands.training import train_method
from hf_ext.data import load
from hf_ext.models import RDForImageClassification
from hf_ext.trainers import RDTrainer, RDTrainingConfig
from hf_ext.trainers.arguments import option
from hf_ext.trainers.rd.teacher_cache import COLUMN


@dataclass
class RDModelArguments(ModelArguments):
    """Which student (`model_name_or_path`; a saved RD model goes on), and which teacher."""

    model_name_or_path: str | None = option(
        None, "Student, required: a Hub id or a folder, or those of a saved RD model."
    )
    teacher_model: str | None = option(None, "Teacher: a Hub id or a folder; by default that of a saved RD model.")

    def check(self) -> None:
        """Before anything is loaded.

        Raises:
            ValueError: no student named, a folder that does not exist, or texts instead of images asked for.
        """
        super().check()
        check_place("teacher_model", self.teacher_model)
        if self.task != "image-classification":
            raise ValueError(f"task: found {self.task!r}, allowed is 'image-classification'")

    def load(self, names: Sequence[str]) -> nn.Module:
        """The student with a head for classes of these names, together with its teacher.

        Raises:
            ValueError: no teacher, or a saved RD model of another number of classes.
        """
        place = str(self.model_name_or_path)
        config = AutoConfig.from_pretrained(place)
        if config.model_type == "rd":
            if config.num_labels != len(names):
                raise ValueError(
                    f"model_name_or_path: found an RD model of {config.num_labels} classes for data of {len(names)}, "
                    "allowed is one of as many"
                )
            check_place("teacher_model", self.teacher_model or config.teacher_name)
            return AutoModelForImageClassification.from_pretrained(place).attach_teacher(self.teacher_model)
        if not self.teacher_model:
            raise ValueError("teacher_model: found nothing, allowed is a Hub id or the folder of a model")
        student: Any = super().load(names)
        return RDForImageClassification.from_student(
            student,
            self.teacher_model,
            image_processor=_processor(place),
            teacher_processor=_processor(self.teacher_model),
        )

    def processor(self) -> Any:
        """What prepares images for the student; of a timm model one that can be saved with an RD model.

        Raises:
            ValueError: nothing does.
        """
        own = super().processor()
        settings = getattr(own, "data_config", None)
        return own if settings is None else _of_timm(settings)

    def try_out(self, model: Any, pixel_values: Tensor) -> None:
        """Give images to the student, and to a teacher that sees the same.

        Raises:
            ValueError: one of them cannot take them.
        """
        super().try_out(model, pixel_values)
        if model.config.teacher_inputs == "same":
            with naming_the_images("teacher_model", shape_of(pixel_values)):
                model.get_teacher_features(pixel_values)


def _processor(place: str) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(place)
    except (OSError, ValueError):  # a model of pixel values, without one
        return None


def _of_timm(settings: Mapping[str, Any]) -> Any:
    """What prepares images as timm does, and is saved like any: timm's own is nowhere but in a timm model's folder."""
    channels, height, width = settings["input_size"]
    common = {
        "image_mean": list(settings["mean"]),
        "image_std": list(settings["std"]),
        "resample": int(Resampling[settings["interpolation"].upper()]),
        "do_convert_rgb": channels == 3,
    }
    size = {"height": height, "width": width}
    if settings["crop_mode"] != "center" or height != width:
        return ViTImageProcessor(size=size, **common)
    edge = math.floor(height / settings["crop_pct"])
    return BitImageProcessor(size={"shortest_edge": edge}, crop_size=size, **common)


@dataclass
class _StudentLora(PartLora):
    """A LoRA on the student of a saved RD model; its classifier and BatchNorms, and phi, are trained in full."""

    what = "RD model"

    lora_target_modules: list[str] | None = option(
        None,
        "Layers that the LoRA is added to; by default the student's linear layers and convolutions, but "
        "for its classifier.",
    )
    lora_modules_to_save: list[str] | None = option(
        None,
        "Layers trained in full in addition to the LoRA, or 'none'; by default phi, the student's classifier and "
        "its BatchNorms.",
    )

    def defaults(self, model: Any) -> tuple[list[str], list[str]]:
        head = f"student.{model.config.student_classifier}"
        modules = dict(model.student.named_modules(prefix="student"))
        targets = [name for name, module in modules.items() if name != head and _takes_lora(module, self.lora_r)]
        # an adapter has the statistics only of layers that are saved in full
        statistics = [name for name, module in modules.items() if getattr(module, "running_mean", None) is not None]
        return targets, [head, "phi", *statistics]


def _takes_lora(module: nn.Module, rank: int) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 or rank % module.groups == 0
    return isinstance(module, nn.Linear)


def train(argv: Sequence[str]) -> None:
    """Train a student with its teacher, evaluate it and leave a folder ready for the Hub, the student in it too."""
    train_method(
        "rd",
        RDTrainer,
        RDTrainingConfig,
        argv,
        description="Train a small student with reprogrammed features of a large frozen model (RD, Zhou et al. 2024).",
        model=RDModelArguments,
        rows=OwnDataArguments,
        adapter=_StudentLora,
        saved=_finish,
        defaults={"per_device_train_batch_size": 32},  # the alignment is over a batch
    )


def _finish(trainer: Any) -> None:
    """Save the student alone, without an adapter, and compare it with its teacher for the card."""
    model = unwrapped(trainer.model)
    if trainer.args.should_save:
        merged = _merged(model) if isinstance(model, PeftModel) else model
        merged.save_student(Path(trainer.args.output_dir) / "student", trainer.processing_class)
    if trainer.eval_dataset is None:
        return
    if model.reads_teacher() or COLUMN in trainer.eval_dataset.column_names:
        trainer.save_metrics("teacher_comparison", trainer.compare_with_teacher())


def _merged(model: Any) -> Any:
    """A copy of what an RD model with an adapter computes, without the adapter and without its teacher."""
    inner = model.get_base_model()
    teacher, inner._teacher = inner._teacher, None
    try:
        return copy.deepcopy(model).merge_and_unload()
    finally:
        inner._teacher = teacher


# ------------------------------------------------------------------------------------------------ demo
DATASET, PER_CLASS = "digits", 5
SHOWN, PROBE = "RD", "the teacher's features, linear probe"
#: with the learning rates that the study `rd` has chosen in this case
SYSTEMS: dict[str, dict[str, Any]] = {
    "student alone": {"rd_method": "student", "learning_rate": 3e-3},
    "aligned with the teacher's features": {"rd_method": "cka", "learning_rate": 3e-2},
    SHOWN: {"rd_beta": 1.0, "rd_temperature": 4.0, "learning_rate": 1e-2},
}
TEACHER_WIDTHS = (32, 64, 128)  # twice the student's


class _Features(nn.Module):
    """What a classifier makes of images before its last layer."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.resnet = classifier.resnet

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.resnet(pixel_values).pooler_output.flatten(1)


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Train a small ResNet on a few digits, alone and with features of a larger one that has seen many others.

    Raises:
        ValueError: fewer than one seed or step.
    """
    run_demo(
        "rd",
        out,
        seeds=seeds,
        steps=steps,
        text=f"[bold]RD[/] on {DATASET}: a small ResNet learns from {PER_CLASS} labelled digits a class, alone or "
        "with features of a frozen teacher, a ResNet of twice its width that has learned from 597 others in four "
        f"turns. Compared is the student's accuracy, without the teacher; {seeds} seeds.",
        found="What the study found: with five labels a class RD, with its divergence term, is better than the "
        "student alone (shown); no better than other ways to learn from the teacher, such as distillation from its "
        "probe.",
        systems=_systems,
        trainings=1 + len(SYSTEMS),
        shown=SHOWN,
        title="accuracy",
        card={
            "dataset": f"scikit-learn {DATASET}",
            "dataset_description": (
                f"Accuracy on test images after {steps} steps of AdamW on {PER_CLASS} images a class. The student is "
                "a small ResNet, the teacher one of twice its width that has learned to tell digits and their quarter "
                "turns apart on 597 other images. Student, teacher and reprogrammed features are those of the model "
                "that is here, of one seed."
            ),
            "example": classifier_example(DATASET),
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    data = load(DATASET, seed=run.seed)
    teacher, test = _teacher(run, data["pretrain"]), data["test"]
    labels = data["train"].with_format("numpy")["labels"][:]
    few = np.concatenate([np.flatnonzero(labels == label)[:PER_CLASS] for label in np.unique(labels)])
    rows = data["train"].select(few)
    yield PROBE, {"": _probe(teacher, rows, test)}, None
    for name, options in SYSTEMS.items():
        trainer = _trainer(run, copy.deepcopy(teacher), rows, test, **options)
        run.train(trainer, name)
        score = accuracy_on(trainer, test)
        if run.seed == 0 and name == SHOWN:
            trainer.compare_with_teacher()
            trainer.model.save_student(run.folder / "student")
        yield name, {"": score}, trainer


def _teacher(run: DemoRun, rows: Dataset) -> nn.Module:
    """Features of a ResNet that tells digits and their quarter turns apart, forty classes."""
    columns = rows.with_format("torch", columns=["pixel_values", "labels"])[:]
    turned = torch.cat([torch.rot90(columns["pixel_values"], turns, dims=(2, 3)) for turns in range(4)])
    labels = torch.cat([4 * columns["labels"] + turns for turns in range(4)])
    data = Dataset.from_dict({"pixel_values": turned.numpy(), "labels": labels.numpy()}).with_format("torch")
    torch.manual_seed(run.seed)
    config = _small_models.resnet(channels=1, widths=TEACHER_WIDTHS, num_labels=40)
    trainer = Trainer(
        ResNetForImageClassification(config),
        run.arguments(TrainingArguments, 3e-3, steps=2 * run.steps),
        train_dataset=data,
    )
    run.train(trainer, "training the teacher")
    return _Features(trainer.model).eval()


def _trainer(
    run: DemoRun, teacher: nn.Module, rows: Dataset, test: Dataset, learning_rate: float, **options: Any
) -> RDTrainer:
    torch.manual_seed(run.seed)
    names = class_names(rows.features["labels"].names)
    student = ResNetForImageClassification(_small_models.resnet(channels=1, **names))
    model = RDForImageClassification.from_student(student, teacher, teacher_width=TEACHER_WIDTHS[-1])
    args = run.arguments(RDTrainingConfig, learning_rate, rd_cache_teacher=True, **options)
    return RDTrainer(model=model, args=args, train_dataset=rows, eval_dataset=test, compute_metrics=accuracy)


@torch.no_grad()
def _probe(teacher: nn.Module, rows: Dataset, test: Dataset) -> float:
    """Accuracy of a linear classifier of the teacher's features, learned from the same rows."""
    teacher.eval()
    parts = [part.with_format("torch", columns=["pixel_values", "labels"])[:] for part in (rows, test)]
    features = [teacher(part["pixel_values"]).numpy() for part in parts]
    probe = LogisticRegression(max_iter=1000).fit(features[0], np.asarray(parts[0]["labels"]))
    return float(probe.score(features[1], np.asarray(parts[1]["labels"])))
