"""Data of FER's study: features of faces (or pixels of digits) with few or wrong labels, and embeddings of texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict, concatenate_datasets
from numpy.typing import NDArray
from torch import Tensor

from hf_ext._files import read_json
from hf_ext.data import EMBEDDED, load
from hf_ext.studies.study import Preparation
from hf_ext.studies.tables import check_table, one_table, rows_by_split
from hf_ext.studies.training import Rows

COLUMNS = ("features", "label", "split")
NEUTRAL = {"faces": "neutral", "digits": "0"}
#: prompts of the classes and their embeddings by all-MiniLM-L6-v2 (mean over tokens, before it is normalised)
TEXTS = read_json(Path(__file__).parent / "texts.json")
_FILE = "data.pt"


@dataclass(frozen=True)
class Part:
    """Rows of one part of the data: features `[N, D]`, or images `[N, C, H, W]`, and labels `[N]`."""

    features: Tensor
    labels: Tensor

    def rows(self) -> Rows:
        """As a data set that a Trainer takes; features are pixels of an image one pixel high."""
        images = self.features if self.features.ndim == 4 else self.features[:, None, None]
        return Rows.of(pixel_values=images, labels=self.labels)


def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for data that cannot be used under this name."""
    if name != "digits":
        check_faces(name, data, COLUMNS)


def check_faces(name: str, data: DatasetDict, columns: Sequence[str]) -> None:
    """Raises ValueError for anything but a table with these columns and the seven expressions as labels."""
    check_table(name, data, columns, classes=["label"])
    names, allowed = one_table(name, data, columns).features["label"].names, list(TEXTS["faces"])
    if set(names) != set(allowed):
        raise ValueError(f"--data: found the classes {', '.join(names)} in {name}, allowed are {', '.join(allowed)}")


def prepare(ready: Preparation) -> None:
    """Leave training, validation and test rows in the folder, features standardised, with the classes' names."""
    features, labels, split, names = _digits(ready) if ready.name == "digits" else _faces(ready)
    parts = rows_by_split(split.tolist(), ready.seed)
    mean, std = features[parts["train"]].mean(0), features[parts["train"]].std(0) + 1e-6
    data = {name: ((features[rows] - mean) / std, labels[rows]) for name, rows in parts.items()}
    columns = {name: {"features": torch.from_numpy(x), "labels": torch.from_numpy(y)} for name, (x, y) in data.items()}
    torch.save(columns, ready.folder / _FILE)
    (ready.folder / "names.json").write_text(json.dumps({"classes": names}))


def open_parts(folder: Path) -> tuple[dict[str, Part], list[str]]:
    """What `prepare` has left: `train`, `validation` and `test`, and the names of the classes."""
    parts = torch.load(folder / _FILE, weights_only=True)
    names: list[str] = read_json(folder / "names.json")["classes"]
    return {name: Part(**columns) for name, columns in parts.items()}, names


_Table = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_], list[str]]


def _faces(ready: Preparation) -> _Table:
    table = one_table(ready.name, load(ready.data), COLUMNS)
    columns = table.with_format("numpy", columns=["features", "label"])[:]
    features = np.asarray(columns["features"], dtype=np.float32).reshape(len(table), -1)
    split = np.asarray(table["split"][:])
    return features, np.asarray(columns["label"], dtype=np.int64), split, table.features["label"].names


def _digits(ready: Preparation) -> _Table:
    splits = load(ready.data, seed=ready.seed) if ready.data in EMBEDDED else load(ready.data)
    parts = [concatenate_datasets([splits["pretrain"], splits["train"]]), splits["test"]]
    both = [rows.with_format("numpy", columns=["pixel_values", "labels"])[:] for rows in parts]
    pixels = np.concatenate([columns["pixel_values"] for columns in both]).astype(np.float32)
    labels = np.concatenate([columns["labels"] for columns in both]).astype(np.int64)
    split = np.repeat(["train", "test"], [len(rows) for rows in parts])
    return pixels.reshape(len(pixels), -1), labels, split, [str(digit) for digit in range(10)]


# ------------------------------------------------------------------------------------------------ conditions
def training_part(part: Part, seed: int, *, per_class: int | None, wrong: float) -> Part:
    """Of the training rows so many a class, or all; of the labels a share replaced by others, drawn evenly."""
    rng = np.random.default_rng([seed, 1])
    labels = part.labels.numpy().copy()
    rows = rng.permutation(len(labels))
    if per_class is not None:
        rows = np.concatenate([rows[labels[rows] == label][:per_class] for label in np.unique(labels)])
    labels, classes = labels[rows], int(labels.max()) + 1
    chosen = rng.permutation(len(rows))[: round(wrong * len(rows))]
    labels[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return Part(part.features[torch.from_numpy(rows)], torch.from_numpy(labels))


def texts(name: str, names: list[str], kind: str, seed: int) -> tuple[list[str], Tensor]:
    """Prompts of the classes and their embeddings `[C, 384]`.

    Args:
        name: of the data set.
        names: of the classes, in order.
        kind: `"texts"`; `"shuffled"`, those of other classes; or `"random"`, drawn from a normal distribution.
        seed: of what is drawn.
    """
    rows = [TEXTS[name][each] for each in names]
    features = torch.tensor([row["features"] for row in rows])
    generator = torch.Generator().manual_seed(seed)
    if kind == "shuffled":  # a cycle of all classes, so that none keeps its own
        order = torch.randperm(len(names), generator=generator)
        features = features[order[(order.argsort() + 1) % len(names)]]
    elif kind == "random":
        features = torch.randn(features.shape, generator=generator)
    return [row["prompt"] for row in rows], features
