"""Labels of training data that are no classes, refused before the first step."""

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorWithPadding, default_data_collator

from hf_ext._models import base_model
from hf_ext.data.collators import KeepColumns
from hf_ext.functional.losses import IGNORED_LABEL

#: where these collators find labels, the first of these that is there
LABEL_COLUMNS = ("labels", "label", "label_ids")
_CLASSIFIERS = tuple(f"For{what}Classification" for what in ("Image", "Sequence", "Audio", "Video"))


def check_train_labels(trainer: Any, classes: int | None = None, *, rows: Any = None) -> None:
    """Refuse training data whose labels are no classes of the model, where that is cheap to see.

    That is where labels reach the model as they lie there: in a column of a `Dataset` without a transform, with a
    collator that only stacks them.

    Args:
        trainer: a Trainer.
        classes: number of the model's. By default that of a classifier of transformers which makes its own loss of
            one class a sample; for another model, or without a column of labels, nothing is looked at.
        rows: other data than `train_dataset`.

    Raises:
        ValueError: no column of labels, or labels that are not integers from 0 to `classes` - 1 (or -100).
    """
    required = classes is not None
    classes = _classes_of(trainer) if classes is None else classes
    rows = trainer.train_dataset if rows is None else rows
    if classes is None or not isinstance(rows, Dataset) or rows.format["type"] == "custom" or not _stacks(trainer):
        return
    column = next((name for name in LABEL_COLUMNS if name in rows.column_names), None)
    if column is None:
        if not required:
            return
        raise ValueError(
            f"labels: found none among the columns {', '.join(rows.column_names)} of the training data, allowed is "
            "one called labels or label (or a data_collator that makes them)"
        )
    if not len(rows):
        return
    labels = np.asarray(rows.select_columns(column).with_format("numpy")[:][column])
    if labels.ndim != 1 and not required:  # several labels a sample
        return
    allowed = f"allowed are 0 to {classes - 1}, the model's classes"
    if labels.ndim != 1 or labels.dtype.kind not in ("iu" if required else "iub"):
        values = rows.with_format(None)[column][:]
        example = next((value for value in values if not isinstance(value, int)), values[0])
        raise ValueError(f"{column}: found {rows.features[column]} with values such as {example!r}, {allowed}")
    wrong = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise ValueError(f"{column}: found {wrong[0]} in the training data, {allowed}")


def _stacks(trainer: Any) -> bool:
    """Whether the collator hands labels over as they are."""
    collator = trainer.data_collator
    while isinstance(collator, KeepColumns):
        collator = collator.collator
    return collator is default_data_collator or type(collator) is DataCollatorWithPadding


def _classes_of(trainer: Any) -> int | None:
    """Of a model that makes the loss itself, of one class a sample; None for others, whose labels may be anything."""
    model = base_model(trainer.model)
    config = getattr(model, "config", None)
    if trainer.compute_loss_func is not None or not type(model).__name__.endswith(_CLASSIFIERS):
        return None
    if any("compute_loss" in vars(kind) for kind in type(trainer).__mro__ if not _is_known(kind)):
        return None
    number = int(getattr(config, "num_labels", None) or 0)
    single = getattr(config, "problem_type", None) in (None, "single_label_classification")
    return number if single and number > 1 else None


def _is_known(kind: type) -> bool:
    """Whether a class is one whose loss is the model's own, or of its labels."""
    return kind.__module__.partition(".")[0] in ("transformers", "trl", "hf_ext")
