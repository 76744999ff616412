"""How many samples of every class a client has."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_ext.trainers.labels import LABEL_COLUMNS


def counts_of_labels(dataset: Any, classes: int) -> Tensor:
    """Samples of every class, int64 `[C]`, from the column of labels, read alone and without a transform.

    Raises:
        ValueError: no such column, or labels that are not integers from 0 to C - 1, one per sample.
    """
    names = dataset.column_names if isinstance(dataset, Dataset) else []
    column = next((name for name in LABEL_COLUMNS if name in names), None)
    if column is None:
        found = f"columns {', '.join(names)}" if names else f"a {type(dataset).__name__}"
        raise ValueError(
            f"class_counts: found none, and {found} as train_dataset, allowed are counts by class, or a Dataset "
            f"with a column {' or '.join(LABEL_COLUMNS[:2])}"
        )
    labels = np.asarray(dataset.select_columns(column).with_format("numpy")[:][column])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{column}: found {labels.dtype} of shape {list(labels.shape)} in train_dataset, allowed are classes, one "
            "integer per sample"
        )
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(
            f"{column}: found {wrong[0]} in train_dataset, allowed are 0 to {classes - 1}, the head's classes"
        )
    return torch.from_numpy(np.bincount(labels, minlength=classes))


def as_counts(counts: Sequence[float] | Tensor, classes: int) -> Tensor:
    """Counts as the user gives them, `[C]`.

    Raises:
        ValueError: not one number for each class.
    """
    values = torch.as_tensor(counts)
    if values.shape != (classes,) or values.dtype == torch.bool:
        raise ValueError(
            f"class_counts: found {values.dtype} of shape {list(values.shape)}, allowed is one number for each of the "
            f"head's {classes} classes"
        )
    return values
