"""Real handwritten digits that scikit-learn carries (1797 images of 8 x 8 pixels), as several tasks or domains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features
from numpy.typing import NDArray

Pixels = NDArray[np.float32]  # [N, 1, H, W], in [-1, 1]
PRETRAIN, TRAIN = 597, 600  # images of the first two splits; the other 600 are the test split
_TEST_SEED = 0  # one test split for all seeds: what is tuned with one seed must not be tested with another


@dataclass(frozen=True)
class Variant:
    """One task or domain: what happens to the pixels, and by how much the label is shifted (modulo 10)."""

    name: str
    pixels: Callable[[Pixels, np.random.Generator], Pixels] = lambda pixels, _: pixels
    label_shift: int = 0


def _rotated(quarter_turns: int) -> Callable[[Pixels, np.random.Generator], Pixels]:
    return lambda pixels, _: np.rot90(pixels, quarter_turns, axes=(2, 3))


def _inverted(pixels: Pixels, _: np.random.Generator) -> Pixels:
    return -pixels


def _noisy(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return np.clip(pixels + rng.normal(scale=0.5, size=pixels.shape), -1, 1).astype(np.float32)


_ROTATED = (
    Variant("rotated_0"),
    Variant("rotated_90", _rotated(1), label_shift=3),
    Variant("rotated_180", _rotated(2), label_shift=5),
    Variant("rotated_270", _rotated(3), label_shift=7),
)

#: tasks or domains by the name of the data set, in the order of their ids
VARIANTS: dict[str, tuple[Variant, ...]] = {
    "digits": (Variant("plain"),),
    "digits-rotated": _ROTATED,
    "digits-rotated-inverted": (
        *_ROTATED,
        Variant("inverted_0", _inverted, label_shift=1),
        Variant("inverted_90", lambda pixels, _: -np.rot90(pixels, 1, axes=(2, 3)), label_shift=4),
        Variant("inverted_180", lambda pixels, _: -np.rot90(pixels, 2, axes=(2, 3)), label_shift=6),
        Variant("inverted_270", lambda pixels, _: -np.rot90(pixels, 3, axes=(2, 3)), label_shift=8),
    ),
    "digits-domains": (
        Variant("plain"),
        Variant("rotated_90", _rotated(1)),
        Variant("inverted", _inverted),
        Variant("noisy", _noisy),
    ),
}

#: coarse classes of the digits: clusters of their mean images, by complete linkage cut into five
LOOKS = ("0", "1 2 8", "3 5 9", "4 6", "7")


def digits(name: str = "digits-rotated", *, seed: int = 0, size: int = 8) -> DatasetDict:
    """Digits as tasks or domains.

    `digits-rotated`: four tasks, quarter turns each with its own shift of the labels; `digits-rotated-inverted`: these
    and four more with dark and light exchanged; `digits-domains`: four domains with the same labels.

    Columns: `pixel_values` float32 `[1, size, size]` in [-1, 1]; `labels`, ten classes; `task_ids` and `domain_ids`,
    the same ids under the names that multi-task and multi-domain methods look for. Splits: `pretrain`, 597 plain
    images of task 0; `train`, 600 other images in every task; `test`, the remaining 600 in every task.

    Args:
        name: a key of `VARIANTS`.
        seed: draws the splits `pretrain` and `train` and their noise; `test` is always the same.
        size: pixels a side, a multiple of 8 (every pixel is repeated, noise and all).

    Raises:
        ValueError: unknown name or size.
    """
    if name not in VARIANTS:
        raise ValueError(f"name: found {name!r}, allowed are {sorted(VARIANTS)}")
    if size < 8 or size % 8:
        raise ValueError(f"size: found {size!r}, allowed are multiples of 8")
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    pixels = (raw.reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float32)
    rng, test_rng = np.random.default_rng(seed), np.random.default_rng(_TEST_SEED)
    rest, test = np.split(test_rng.permutation(len(labels)), [PRETRAIN + TRAIN])
    pretrain, train = np.split(rng.permutation(rest), [PRETRAIN])
    variants = VARIANTS[name]
    return DatasetDict(
        {
            "pretrain": _split(pixels[pretrain], labels[pretrain], variants[:1], variants, rng, size),
            "train": _split(pixels[train], labels[train], variants, variants, rng, size),
            "test": _split(pixels[test], labels[test], variants, variants, test_rng, size),
        }
    )


def _split(
    pixels: Pixels,
    labels: NDArray[Any],
    used: tuple[Variant, ...],
    variants: tuple[Variant, ...],
    rng: np.random.Generator,
    size: int,
) -> Dataset:
    small = np.concatenate([variant.pixels(pixels, rng) for variant in used])
    ids = np.repeat(np.arange(len(used)), len(labels))
    task = ClassLabel(names=[variant.name for variant in variants])
    columns = {
        "pixel_values": small.repeat(size // 8, axis=2).repeat(size // 8, axis=3),
        "labels": np.concatenate([(labels + variant.label_shift) % 10 for variant in used]),
        "task_ids": ids,
        "domain_ids": ids,
    }
    features = Features(
        pixel_values=Array3D(shape=(1, size, size), dtype="float32"),
        labels=ClassLabel(names=[str(digit) for digit in range(10)]),
        task_ids=task,
        domain_ids=task,
    )
    return Dataset.from_dict(columns, features=features).with_format("torch")


def with_looks(rows: Dataset) -> Dataset:
    """Plain digits with two labels, `label`, the digit, and `coarse_label`, its class of `LOOKS`; no other columns."""
    coarse_of = {int(digit): number for number, digits in enumerate(LOOKS) for digit in digits.split()}
    rows = rows.select_columns(["pixel_values", "labels"])
    coarse = [coarse_of[int(label)] for label in rows["labels"][:]]
    rows = rows.rename_column("labels", "label")
    return rows.add_column("coarse_label", coarse, feature=ClassLabel(names=list(LOOKS)))
