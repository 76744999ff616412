"""Data of DivBS's studies: clean rows, rows with wrong labels, rows of which most are copies."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, concatenate_datasets
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as MapDataset
from torch.utils.data import StackDataset, Subset

from hf_ext.data import EMBEDDED, load
from hf_ext.studies.study import Preparation
from hf_ext.studies.tables import hold_out, pixels

CLEAN, NOISE, COPIES = "clean", "label noise", "copies"
CONDITIONS = (CLEAN, NOISE, COPIES)
WRONG = 0.2  # share of the training labels that are wrong under label noise
REPEATED, TIMES = 0.1, 21  # share of the training images of which there are copies, and how often each is there
SIZE = 32  # pixels a side of images
NEEDS = {
    "digits": "pixel_values (1 x 8 x 8), labels, in the splits pretrain, train and test",
    "images": "image, label, split (train, test)",
}
_FILE = "data.pt"


@dataclass(frozen=True)
class Part:
    """Rows of one part of the data in memory: `[N, C, H, W]` and `[N]`."""

    pixel_values: Tensor
    labels: Tensor

    def rows(self) -> MapDataset[dict[str, Tensor]]:
        """As a data set that a Trainer takes."""
        return _in_memory(pixel_values=self.pixel_values, labels=self.labels)


def _in_memory(**columns: Any) -> MapDataset[dict[str, Tensor]]:
    rows: Any = StackDataset(**columns)  # takes whatever has rows, unlike its annotation
    return rows


# ------------------------------------------------------------------------------------------------ parts
def prepare(ready: Preparation) -> None:
    """Leave training, validation and test rows in the folder."""
    train, test = BUILDERS[ready.name](ready)
    training, validation = (torch.from_numpy(rows) for rows in hold_out(np.arange(len(train.labels)), ready.seed))
    parts = {
        "train": Part(train.pixel_values[training], train.labels[training]),
        "validation": Part(train.pixel_values[validation], train.labels[validation]),
        "test": test,
    }
    torch.save({name: vars(part) for name, part in parts.items()}, ready.folder / _FILE)


def open_parts(folder: Path) -> dict[str, Part]:
    """What `prepare` has left: `train`, `validation`, `test`."""
    return {name: Part(**columns) for name, columns in torch.load(folder / _FILE, weights_only=True).items()}


def _digits(ready: Preparation) -> tuple[Part, Part]:
    """All digits outside the test split, and that."""
    splits = load(ready.data, seed=ready.seed) if ready.data in EMBEDDED else load(ready.data)
    train = concatenate_datasets([splits[name].with_format(None) for name in ("pretrain", "train")])
    both = [rows.with_format("numpy", columns=["pixel_values", "labels"])[:] for rows in (train, splits["test"])]
    return _part(both[0]["pixel_values"], both[0]["labels"]), _part(both[1]["pixel_values"], both[1]["labels"])


def _images(ready: Preparation) -> tuple[Part, Part]:
    """Pictures, scaled to 32 x 32 pixels."""
    table = load(ready.data)["train"]
    rows = pixels(table["image"][:], "RGB", SIZE)
    labels, split = np.asarray(table["label"][:]), np.asarray(table["split"][:])
    return _part(rows[split == "train"], labels[split == "train"]), _part(
        rows[split == "test"], labels[split == "test"]
    )


def _part(pixels: NDArray[Any], labels: NDArray[Any]) -> Part:
    return Part(torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels.astype(np.int64)))


BUILDERS: dict[str, Callable[[Preparation], tuple[Part, Part]]] = {"digits": _digits, "images": _images}


def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for data that the builder of this name cannot use."""
    digits = name == "digits"
    needed = {"pixel_values", "labels"} if digits else {"image", "label", "split"}
    for split in ("pretrain", "train", "test") if digits else ("train",):
        columns = data[split].column_names if split in data and len(data[split]) else []
        if not needed <= set(columns):
            present = ", ".join(columns) or "no rows"
            raise ValueError(f"--data: found {present} in the split {split} of {name}, allowed are {NEEDS[name]}")
    if not digits and not {"train", "test"} <= (splits := set(data["train"]["split"][:])):
        raise ValueError(f"--data: found the splits {sorted(splits)} in {name}, allowed are {NEEDS[name]}")


# ------------------------------------------------------------------------------------------------ conditions
def training_rows(part: Part, condition: str, seed: int) -> MapDataset[dict[str, Tensor]]:
    """Rows to train on, with the column `marked`: 1 where the label is wrong, or where the image is one of those of
    which there are copies.

    Under label noise a fifth of the labels are others, drawn evenly. With copies a tenth of the images are there 21
    times, so that two thirds of the rows are copies.
    """
    rng = np.random.default_rng([seed, CONDITIONS.index(condition)])
    count, classes = len(part.labels), int(part.labels.max()) + 1
    labels, marked, order = part.labels.clone(), torch.zeros(count, dtype=torch.int64), torch.arange(count)
    share = {CLEAN: 0.0, NOISE: WRONG, COPIES: REPEATED}[condition]
    chosen = torch.from_numpy(rng.permutation(count)[: round(share * count)])
    marked[chosen] = 1
    if condition == NOISE:
        others = torch.from_numpy(rng.integers(1, classes, len(chosen)))
        labels[chosen] = (labels[chosen] + others) % classes
    if condition == COPIES:
        order = torch.cat([order, chosen.repeat(TIMES - 1)])
    rows = _in_memory(pixel_values=part.pixel_values, labels=labels, marked=marked)
    return Subset(rows, order.tolist())
