"""Data of DISAM's study in memory: every domain is left out in turn, one source may be made unlike the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from numpy.typing import NDArray

from hf_ext.data import EMBEDDED, load
from hf_ext.studies.study import Preparation
from hf_ext.studies.tables import check_classes, check_table, hold_out, one_table, pixels, rows_by_split, whole_images

RARE, NOISE = 0.05, 0.2  # share of its rows that a rare source keeps; share of a noisy source's labels that are wrong
HARD = "mnist_photo"  # of the digits: a source in the case `hard`, absent from the others, never left out
SIZE = 14  # pixels a side
_FILE = "data.npz"
_PARTS = ("train", "validation", "test")

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """Rows of one part of the data: inputs `[N, ...]`, labels and domains `[N]`."""

    inputs: Array
    labels: Array
    domains: Array

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Array) -> "Part":
        """The rows of these indices, or where a mask is true."""
        return Part(self.inputs[rows], self.labels[rows], self.domains[rows])


@dataclass(frozen=True)
class Problem:
    """All rows of a data set.

    Args:
        parts: `train`, `validation` and `test` rows of all domains, and those on which a domain that was left out is
            scored (`unseen`).
        classes: number of classes.
        domains: names.
    """

    parts: Mapping[str, Part]
    classes: int
    domains: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write what `open_problem` reads."""
        arrays = {f"{name}/{key}": value for name, part in self.parts.items() for key, value in vars(part).items()}
        np.savez(folder / _FILE, **arrays, classes=self.classes, domain_names=np.array(self.domains))

    @property
    def left_out(self) -> list[int]:
        """The domains that are left out in turn."""
        return [domain for domain, name in enumerate(self.domains) if name != HARD]

    def without(self, held: int, regime: str, seed: int) -> "Problem":
        """What is trained, chosen and scored on when the domain `held` is left out.

        The domain after it is the odd one out: in the regime `rare` 5 % of its training and validation rows remain,
        in `noisy` 20 % of their labels are wrong; `hard` has a source more. Test rows are as they were.
        """
        sources = [domain for domain in self.left_out if domain != held]
        if regime == "hard":
            sources.append(self.domains.index(HARD))
        odd = self.left_out[(self.left_out.index(held) + 1) % len(self.left_out)]
        rng = np.random.default_rng([seed, held])
        parts = {"unseen": self.parts["unseen"].select(self.parts["unseen"].domains == held)}
        for name in _PARTS:
            part = self.parts[name]
            part = part.select(np.isin(part.domains, sources))
            if name != "test" and regime == "rare":
                part = _rare(part, odd, rng)
            if name != "test" and regime == "noisy":
                part = _noisy(part, odd, self.classes, rng)
            parts[name] = part
        return replace(self, parts=parts)


def open_problem(folder: Path) -> Problem:
    """What `Problem.save` wrote."""
    with np.load(folder / _FILE) as arrays:
        parts = {
            name: Part(*(arrays[f"{name}/{key}"] for key in ("inputs", "labels", "domains")))
            for name in (*_PARTS, "unseen")
        }
        return Problem(parts, int(arrays["classes"]), tuple(map(str, arrays["domain_names"])))


def _rare(part: Part, odd: int, rng: np.random.Generator) -> Part:
    rows = np.flatnonzero(part.domains == odd)
    remaining = rng.choice(rows, max(1, round(RARE * len(rows))), replace=False)
    return part.select(np.sort(np.concatenate([np.flatnonzero(part.domains != odd), remaining])))


def _noisy(part: Part, odd: int, classes: int, rng: np.random.Generator) -> Part:
    rows = np.flatnonzero(part.domains == odd)
    wrong = rng.choice(rows, round(NOISE * len(rows)), replace=False)
    labels = part.labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return replace(part, labels=labels)


# ------------------------------------------------------------------------------------------------ builders
def embedded(ready: Preparation) -> Problem:
    """The same images in every domain: those that are trained on in one are scored in none."""
    splits = load(ready.data, seed=ready.seed) if ready.data in EMBEDDED else load(ready.data)
    domains = splits["train"].features["domain_ids"]
    images = len(splits["train"]) // domains.num_classes
    parts = {}
    for name in ("train", "test"):
        rows = splits[name].with_format("numpy")
        parts[name] = Part(*(rows[column][:] for column in ("pixel_values", "labels", "domain_ids")))
    training, validation = hold_out(np.arange(images), ready.seed)
    every = images * np.arange(domains.num_classes)[:, None]
    train = parts["train"]
    parts |= {
        "train": train.select((training + every).ravel()),
        "validation": train.select((validation + every).ravel()),
    }
    return Problem(
        parts | {"unseen": parts["test"]}, splits["train"].features["labels"].num_classes, tuple(domains.names)
    )


def _pixels(raw: Any) -> Array:
    """Grey pictures of 14 x 14 pixels, `[N, 1, 14, 14]`, in [-1, 1]."""
    return pixels(raw["image"][:], "L", SIZE)


def _features(raw: Any) -> Array:
    """What a pretrained network made of the pictures, `[N, d]`; half precision saves space."""
    return np.asarray(raw.with_format("numpy")["features"][:]).astype(np.float16)


def _pictures(raw: Any) -> Array:
    """In colour, `[N, 3, H, W]` of 0 to 255: a pretrained network's processor makes of them what that sees."""
    return whole_images("pictures", raw["image"][:])


def _table(inputs: Callable[[Any], Array]) -> Callable[[Preparation], Problem]:
    """Every row is a picture of its own: all those of a domain that was left out are unseen."""

    def build(ready: Preparation) -> Problem:
        raw = one_table(ready.name, load(ready.data), COLUMNS[ready.name])
        whole = Part(inputs(raw), np.asarray(raw["label"][:]), np.asarray(raw["domain"][:]))
        parts = {name: whole.select(rows) for name, rows in rows_by_split(raw["split"][:], ready.seed).items()}
        names = raw.features["domain"].names
        return Problem(parts | {"unseen": whole}, raw.features["label"].num_classes, tuple(names))

    return build


BUILDERS: dict[str, Callable[[Preparation], Problem]] = {
    "domains": embedded,
    "digits": _table(_pixels),
    "features": _table(_features),
    "pictures": _table(_pictures),
}
COLUMNS: dict[str, Sequence[str]] = {
    "digits": ("image", "label", "domain", "split"),
    "features": ("features", "label", "domain", "split"),
    "pictures": ("image", "label", "domain", "split"),
}
#: what data in place of the embedded digits must have
DOMAINS_NEED = (
    "pixel_values (1 x 8 x 8), labels and domain_ids (class labels), in the splits train (the same images in every "
    "domain, domain after domain) and test"
)


def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for data that the builder of this name cannot use."""
    if name in COLUMNS:
        check_table(name, data, COLUMNS[name], ("label", "domain"))
        domains = data["train"].features["domain"].names
        if name == "digits" and HARD not in domains:
            raise ValueError(f"--data: found the domains {domains} in digits, allowed are any with {HARD} among them")
        if len(set(domains) - {HARD}) < 3:  # the variance over sources needs two
            raise ValueError(f"--data: found the domains {domains} in {name}, allowed are three or more")
        return
    for split in ("train", "test"):
        columns = data[split].column_names if split in data and len(data[split]) else []
        if not {"pixel_values", "labels", "domain_ids"} <= set(columns):
            present = ", ".join(columns) or "no rows"
            raise ValueError(f"--data: found {present} in the split {split} of {name}, allowed are {DOMAINS_NEED}")
    check_classes(name, data["train"], "labels", "domain_ids")
    number = data["train"].features["domain_ids"].num_classes
    ids = np.asarray(data["train"].with_format("numpy")["domain_ids"][:])
    if number < 3 or not np.array_equal(ids, np.repeat(np.arange(number), len(ids) // number)):
        raise ValueError(f"--data: found other domain_ids in the split train of {name}, allowed are {DOMAINS_NEED}")
