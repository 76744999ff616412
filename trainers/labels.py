"""Labels of training data, looked at before the first step."""

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import default_data_collator

from hf_ext.functional.losses import IGNORED_LABEL

#: where the default collator finds labels, the first of these that is there
_COLUMNS = ("labels", "label", "label_ids")


def check_train_labels(trainer: Any, classes: int) -> None:
    """Refuse training data whose labels are no classes of the model, where that is cheap to see.

    That is where labels reach the model as they lie there: in a column of a `Dataset` without a transform, with the
    default collator.

    Args:
        trainer: a Trainer.
        classes: number of the model's.

    Raises:
        ValueError: no column of labels, or labels that are not integers from 0 to `classes` - 1 (or -100).
    """
    rows = trainer.train_dataset
    if not isinstance(rows, Dataset) or rows.format["type"] == "custom":
        return
    if trainer.data_collator is not default_data_collator:
        return
    column = next((name for name in _COLUMNS if name in rows.column_names), None)
    if column is None:
        raise ValueError(
            f"labels: found none among the columns {', '.join(rows.column_names)} of the training data, allowed is "
            "one called labels or label (or a data_collator that makes them)"
        )
    labels = np.asarray(rows.select_columns(column).with_format("numpy")[:][column])
    allowed = f"allowed are 0 to {classes - 1}, the model's classes"
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{column}: found {rows.features[column]} with values such as {rows[column][0]!r}, {allowed}")
    wrong = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise ValueError(f"{column}: found {wrong[0]} in the training data, {allowed}")
