"""Data of RD's study: images with few labels, and what a frozen teacher makes of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict, concatenate_datasets
from torch import Tensor
from transformers import (
    PreTrainedModel,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_ext import _small_models
from hf_ext._runs import arguments, quiet
from hf_ext.data import EMBEDDED, load
from hf_ext.studies.study import Preparation
from hf_ext.studies.tables import check_table, one_table, rows_by_split
from hf_ext.studies.training import Rows

SIDE = 32  # pixels a side of images that a user brings
COLUMNS = ("image", "features", "label", "split")
TEACHER = "teacher"
TEACHER_STEPS = 600
_FILE = "data.pt"


@dataclass(frozen=True)
class Part:
    """Rows of one part of the data: `[N, C, H, W]`, the teacher's features `[N, W]`, labels `[N]`."""

    pixel_values: Tensor
    teacher_features: Tensor
    labels: Tensor

    def rows(self, *, with_features: bool) -> Rows:
        """As a data set that a Trainer takes."""
        features = {"teacher_features": self.teacher_features} if with_features else {}
        return Rows.of(pixel_values=self.pixel_values, labels=self.labels, **features)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max()) + 1

    def __getitem__(self, rows: Tensor) -> "Part":
        return Part(self.pixel_values[rows], self.teacher_features[rows], self.labels[rows])


def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for data that cannot be used under this name."""
    if name != "digits":
        check_table(name, data, COLUMNS, classes=["label"])


def prepare(ready: Preparation) -> None:
    """Leave training, validation and test rows in the folder, the teacher's features standardised.

    Of digits also the teacher itself, as a model in the folder `TEACHER`.
    """
    parts = _digits(ready) if ready.name == "digits" else _images(ready)
    mean, std = parts["train"].teacher_features.mean(0), parts["train"].teacher_features.std(0) + 1e-6
    columns = {
        name: {**vars(part), "teacher_features": (part.teacher_features - mean) / std} for name, part in parts.items()
    }
    torch.save(columns, ready.folder / _FILE)


def open_parts(folder: Path) -> dict[str, Part]:
    """What `prepare` has left: `train`, `validation`, `test`."""
    return {name: Part(**columns) for name, columns in torch.load(folder / _FILE, weights_only=True).items()}


def few(part: Part, per_class: int, seed: int) -> Part:
    """So many rows of every class, drawn by the seed."""
    order = torch.from_numpy(np.random.default_rng([seed, 2]).permutation(len(part.labels)))
    labels = part.labels[order]
    return part[torch.cat([order[labels == label][:per_class] for label in labels.unique()])]


# ------------------------------------------------------------------------------------------------ sources
def _images(ready: Preparation) -> dict[str, Part]:
    table = one_table(ready.name, load(ready.data), COLUMNS)
    pixels = np.stack([np.asarray(image.convert("RGB").resize((SIDE, SIDE))) for image in table["image"][:]])
    columns = table.with_format("torch", columns=["features", "label"])[:]
    whole = Part(
        torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1),
        columns["features"].reshape(len(table), -1),
        columns["label"],
    )
    rows = rows_by_split(table["split"][:], ready.seed)
    return {name: whole[torch.from_numpy(indices)] for name, indices in rows.items()}


def _digits(ready: Preparation) -> dict[str, Part]:
    """The teacher learns from the split `pretrain` to classify digits and their quarter turns, forty classes."""
    splits = load(ready.data, seed=ready.seed) if ready.data in EMBEDDED else load(ready.data)
    teacher = _teacher(splits, ready)
    teacher.save_pretrained(ready.folder / TEACHER)
    parts = {}
    for name in ("train", "test"):
        columns = splits[name].with_format("torch", columns=["pixel_values", "labels"])[:]
        with torch.no_grad():
            features = teacher(columns["pixel_values"]).pooler_output.flatten(1)
        parts[name] = Part(columns["pixel_values"], features, columns["labels"])
    rows = rows_by_split(["train"] * len(parts["train"].labels), ready.seed)
    train, validation = (torch.from_numpy(rows[name]) for name in ("train", "validation"))
    return {"train": parts["train"][train], "validation": parts["train"][validation], "test": parts["test"]}


def _teacher(splits: DatasetDict, ready: Preparation) -> PreTrainedModel:
    rows = concatenate_datasets([splits["pretrain"]]).with_format("torch", columns=["pixel_values", "labels"])[:]
    turned = torch.cat([torch.rot90(rows["pixel_values"], turns, dims=(2, 3)) for turns in range(4)])
    labels = torch.cat([4 * rows["labels"] + turns for turns in range(4)])
    set_seed(ready.seed)
    model = ResNetForImageClassification(_small_models.resnet(channels=1, widths=(32, 64, 128), num_labels=40))
    args = arguments(TrainingArguments, steps=5 if ready.quick else TEACHER_STEPS, learning_rate=3e-3, seed=ready.seed)
    quiet(Trainer(model=model, args=args, train_dataset=Rows.of(pixel_values=turned, labels=labels))).train()
    bare: PreTrainedModel = model.resnet
    return bare.eval()
