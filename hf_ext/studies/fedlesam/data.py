"""Federations of the studies: pictures with labels and origins, divided among clients in several ways."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, concatenate_datasets
from numpy.typing import NDArray
from torch import Tensor

from hf_ext.data import EMBEDDED, Partition, classes_partition, dirichlet_partition, load, natural_partition
from hf_ext.studies.study import Preparation
from hf_ext.studies.tables import check_classes, check_table, hold_out, one_table, pixels, rows_by_split
from hf_ext.studies.training import Rows

CLIENTS = 20
ALPHA, MILDER, FEWEST = 0.1, 0.5, 10  # of the Dirichlet distribution; rows that a client holds at least
CLASSES_EACH = 2  # that a client holds
LOCAL_TEST = 0.2  # share of its rows that a client does not train on, for the personal view
SIZE = {"origins": 14, "images": 32}  # pixels a side
_COLUMNS: dict[str, Sequence[str]] = {
    "origins": ("image", "label", "domain", "split"),
    "images": ("image", "label", "split"),
}
#: what data in place of the embedded digits must have, by name
NEEDS = {
    "digits": "pixel_values (1 x 8 x 8) and labels (class labels), in the splits pretrain, train and test",
    "domains": "pixel_values (1 x 8 x 8), labels and domain_ids (class labels), in the splits train (the same images "
    "in every domain, domain after domain) and test",
    "origins": "image, label, domain (class labels), split (train, test; or these splits)",
    "images": "image, label (class labels), split (train, test; or these splits)",
}
_FILE = "federation.pt"


@dataclass(frozen=True)
class Part:
    """Rows in memory: pictures `[N, C, H, W]` in [-1, 1], labels and origins `[N]`."""

    pixel_values: Tensor
    labels: Tensor
    origins: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: NDArray[np.int64]) -> "Part":
        """The rows of these indices."""
        chosen = torch.tensor(indices)
        return Part(self.pixel_values[chosen], self.labels[chosen], self.origins[chosen])

    def rows(self) -> Rows:
        """As a data set that a Trainer takes: `pixel_values`, `labels`."""
        return Rows.of(pixel_values=self.pixel_values, labels=self.labels)


@dataclass(frozen=True)
class Problem:
    """All rows of a data set.

    Args:
        parts: `train` (what clients hold), `validation` (which chooses hyper-parameters), `test`.
        classes: number of classes.
        origins: names; one where all pictures are of one origin.
    """

    parts: Mapping[str, Part]
    classes: int
    origins: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write what `open_problem` reads."""
        parts = {name: vars(part) for name, part in self.parts.items()}
        torch.save({"parts": parts, "classes": self.classes, "origins": list(self.origins)}, folder / _FILE)


@dataclass(frozen=True)
class Federation:
    """What the clients of a federation and its server hold.

    Args:
        held: the rows of all clients.
        training, testing: which of these each client trains on, and which it keeps for the personal view.
        validation, test: of the whole, for the global view.
        classes: number of classes.
    """

    held: Part
    training: Partition
    testing: Partition
    validation: Part
    test: Part
    classes: int

    def __len__(self) -> int:
        return len(self.training)

    def train_of(self, client: int) -> Part:
        """The rows that a client trains on."""
        return self.held.select(self.training.indices[client])

    def test_of(self, client: int) -> Part:
        """The rows that a client keeps to itself for tests: of its own origin, with its own shares of the classes."""
        return self.held.select(self.testing.indices[client])

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many rows of each class each client trains on, `[clients, classes]`."""
        return self.training.counts(self.held.labels, self.classes)


def open_problem(folder: Path) -> Problem:
    """What `Problem.save` wrote."""
    saved = torch.load(folder / _FILE, weights_only=True)
    parts = {name: Part(**columns) for name, columns in saved["parts"].items()}
    return Problem(parts, saved["classes"], tuple(saved["origins"]))


def prepare(ready: Preparation) -> None:
    """Leave the data in the folder."""
    BUILDERS[ready.name](ready).save(ready.folder)


# ------------------------------------------------------------------------------------------------ federations
def federation(problem: Problem, kind: str, seed: int, clients: int = CLIENTS) -> Federation:
    """The rows divided among clients.

    Args:
        problem: whose `train` rows are divided.
        kind: a key of `KINDS`: `dirichlet` (shares of every class drawn with `ALPHA`), `milder` (with `MILDER`),
            `classes` (`CLASSES_EACH` a client) or `natural` (every client has pictures of one origin; as many clients
            for each).
        seed: draws who gets which rows.
        clients: how many; fewer where so many cannot be as many for each origin.

    Raises:
        ValueError: an unknown kind, one origin for `natural`, or rows that cannot be divided so.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: found {kind!r}, allowed are {', '.join(KINDS)}")
    held = problem.parts["train"]
    training, testing = KINDS[kind](held, clients, seed).split(LOCAL_TEST, seed=seed, labels=held.labels)
    return Federation(
        held, training, testing, problem.parts["validation"], problem.parts["test"], classes=problem.classes
    )


def _natural(held: Part, clients: int, seed: int) -> Partition:
    origins = len(held.origins.unique())
    if origins < 2:
        raise ValueError("kind: found 'natural' for pictures of one origin, allowed are dirichlet and classes")
    return natural_partition(held.origins, clients_per_value=max(1, clients // origins), seed=seed)


def _dirichlet(held: Part, clients: int, seed: int, alpha: float) -> Partition:
    return dirichlet_partition(held.labels, clients, alpha=alpha, min_size=FEWEST, seed=seed)


KINDS: dict[str, Callable[[Part, int, int], Partition]] = {
    "dirichlet": partial(_dirichlet, alpha=ALPHA),
    "milder": partial(_dirichlet, alpha=MILDER),
    "classes": lambda held, clients, seed: classes_partition(
        held.labels, clients, classes_per_client=CLASSES_EACH, seed=seed
    ),
    "natural": _natural,
}


# ------------------------------------------------------------------------------------------------ builders
def _digits(ready: Preparation) -> Problem:
    """All digits outside the test split, and that."""
    splits = _embedded(ready)
    rows = concatenate_datasets([splits[name].with_format(None) for name in ("pretrain", "train")])
    whole, test = _part(rows), _part(splits["test"])
    training, validation = hold_out(np.arange(len(whole)), ready.seed)
    parts = {"train": whole.select(training), "validation": whole.select(validation), "test": test}
    return Problem(parts, rows.features["labels"].num_classes, ("digits",))


def _domains(ready: Preparation) -> Problem:
    """Digits in several domains; images that are held out are so in all of them."""
    splits = _embedded(ready)
    domains = splits["train"].features["domain_ids"].names
    whole, test = (_part(splits[name], "domain_ids") for name in ("train", "test"))
    images = len(whole) // len(domains)
    every = images * np.arange(len(domains))[:, None]
    training, validation = ((rows + every).ravel() for rows in hold_out(np.arange(images), ready.seed))
    parts = {"train": whole.select(training), "validation": whole.select(validation), "test": test}
    return Problem(parts, splits["train"].features["labels"].num_classes, tuple(domains))


def _table(mode: str) -> Callable[[Preparation], Problem]:
    """A table of pictures: grey ("L") or in colours ("RGB")."""

    def build(ready: Preparation) -> Problem:
        table = one_table(ready.name, load(ready.data), _COLUMNS[ready.name])
        domain = table.features.get("domain") if "domain" in _COLUMNS[ready.name] else None
        labels = np.asarray(table["label"][:])
        whole = Part(
            torch.from_numpy(pixels(table["image"][:], mode, SIZE[ready.name])),
            torch.from_numpy(labels),
            torch.from_numpy(np.zeros_like(labels) if domain is None else np.asarray(table["domain"][:])),
        )
        parts = {name: whole.select(rows) for name, rows in rows_by_split(table["split"][:], ready.seed).items()}
        origins = (ready.name,) if domain is None else tuple(domain.names)
        return Problem(parts, table.features["label"].num_classes, origins)

    return build


def _embedded(ready: Preparation) -> DatasetDict:
    return load(ready.data, seed=ready.seed) if ready.data in EMBEDDED else load(ready.data)


def _part(rows: Any, origins: str | None = None) -> Part:
    columns = rows.with_format("torch")
    labels = columns["labels"][:]
    return Part(columns["pixel_values"][:], labels, columns[origins][:] if origins else torch.zeros_like(labels))


BUILDERS: dict[str, Callable[[Preparation], Problem]] = {
    "digits": _digits,
    "domains": _domains,
    "origins": _table("L"),
    "images": _table("RGB"),
}


def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for data that the builder of this name cannot use."""
    if name in _COLUMNS:
        classes = [column for column in _COLUMNS[name] if column in ("label", "domain")]
        return check_table(name, data, _COLUMNS[name], classes)
    splits, columns = {
        "digits": (("pretrain", "train", "test"), {"pixel_values", "labels"}),
        "domains": (("train", "test"), {"pixel_values", "labels", "domain_ids"}),
    }[name]
    for split in splits:
        present = data[split].column_names if split in data and len(data[split]) else []
        if not columns <= set(present):
            found = ", ".join(present) or "no rows"
            raise ValueError(f"--data: found {found} in the split {split} of {name}, allowed are {NEEDS[name]}")
    check_classes(name, data["train"], *sorted(columns - {"pixel_values"}))
    if name == "domains":
        number = data["train"].features["domain_ids"].num_classes
        ids = np.asarray(data["train"].with_format("numpy")["domain_ids"][:])
        if not np.array_equal(ids, np.repeat(np.arange(number), len(ids) // number)):
            raise ValueError(f"--data: found other domain_ids in the split train of {name}, allowed are {NEEDS[name]}")
