"""What studies ask of a table that a user brings, how they split it, and its pictures as numbers."""

from collections.abc import Iterable, Sequence

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets
from numpy.typing import NDArray
from PIL import Image

VALIDATION = 1 / 6  # share of the training rows that choose hyper-parameters


def one_table(name: str, data: DatasetDict, columns: Sequence[str]) -> Dataset:
    """The one table that holds all rows; its column `split` says which split a row is of.

    Args:
        name: of the data set in the study.
        data: as loaded; in place of a column `split` there may be the splits train and test.
        columns: those that must be there, with `split`.

    Raises:
        ValueError: no such table.
    """
    present = data["train"].column_names if "train" in data else []
    table = data["train"] if present else None
    if table is not None and "split" not in present and "test" in data:
        parts = [data[split].add_column("split", [split] * len(data[split])) for split in ("train", "test")]
        table = concatenate_datasets(parts)
    if table is None or not set(columns) <= set(table.column_names):
        raise ValueError(
            f"--data: found the columns {', '.join(present) or 'of no split train'} in {name}, allowed is a table "
            f"with {', '.join(columns)} (or splits train and test in place of the last)"
        )
    return table


def check_table(name: str, data: DatasetDict, columns: Sequence[str], classes: Sequence[str] = ()) -> None:
    """Raises ValueError for anything but a table with these columns, `classes` among them, and rows of both splits."""
    table = one_table(name, data, columns)
    splits = set(table["split"][:])
    if not {"train", "test"} <= splits:
        raise ValueError(f"--data: found the splits {sorted(splits)} in {name}, allowed are both train and test")
    check_classes(name, table, *classes)


def check_classes(name: str, table: Dataset, *columns: str) -> None:
    """Raises ValueError for columns that are no class labels."""
    for column in columns:
        if not isinstance(table.features[column], ClassLabel):
            raise ValueError(
                f"--data: found {table.features[column]} as the column {column} of {name}, allowed are class labels "
                f'(`class_encode_column("{column}")`)'
            )


def pixels(images: Iterable[Image.Image], mode: str, size: int) -> NDArray[np.float32]:
    """Pictures as numbers in [-1, 1], `[N, C, size, size]`.

    Args:
        images: of any size, scaled by means over boxes.
        mode: "L", grey, or "RGB".
        size: pixels a side.
    """
    box = Image.Resampling.BOX
    raw = np.stack([np.asarray(image.convert(mode).resize((size, size), box)) for image in images])
    rows = raw[:, None] if mode == "L" else raw.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(rows / 127.5 - 1, dtype=np.float32)


def whole_images(name: str, images: Iterable[Image.Image]) -> NDArray[np.uint8]:
    """Pictures in colour, at the size that they have, `[N, 3, H, W]`.

    Args:
        name: of the data set in the study.
        images: all of one size.

    Raises:
        ValueError: different sizes.
    """
    rows = [np.asarray(image.convert("RGB")) for image in images]
    sizes = sorted({f"{row.shape[1]} x {row.shape[0]}" for row in rows})
    if len(sizes) > 1:
        raise ValueError(f"--data: found images of {', '.join(sizes[:3])} pixels in {name}, allowed is one size")
    return np.ascontiguousarray(np.stack(rows).transpose(0, 3, 1, 2))


def rows_by_split(split: Sequence[str], seed: int) -> dict[str, NDArray[np.int64]]:
    """Indices of the rows to train on, those held out of them for validation, and those of the test."""
    names = np.asarray(split)
    training, validation = hold_out(np.flatnonzero(names == "train"), seed)
    return {"train": training, "validation": validation, "test": np.flatnonzero(names == "test")}


def hold_out(indices: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices for training and those held out for validation, drawn by the seed."""
    shuffled = np.random.default_rng(seed).permutation(indices)
    cut = int(len(shuffled) * VALIDATION)
    return np.sort(shuffled[cut:]), np.sort(shuffled[:cut])
