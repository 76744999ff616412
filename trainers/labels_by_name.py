"""Labels of named classes, counted as the model counts them."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from hf_ext._models import base_model
from hf_ext.data.rows import WithColumns
from hf_ext.trainers.base import MethodMixin
from hf_ext.trainers.labels import LABEL_COLUMNS


class LabelsByNameMixin(MethodMixin):
    """The model's classes have names: data whose classes have the same ones in another order are counted anew."""

    def align_train_labels(self) -> None:
        """To be called in `check_arguments`, once the labels have been checked."""
        self.train_dataset: Any = labels_by_name(self.train_dataset, self._class_names, "train_dataset")

    @property
    def _class_names(self) -> list[str]:
        labels = base_model(self.model).config.id2label
        return [labels[label] for label in range(len(labels))]

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        dataset = labels_by_name(dataset, self._class_names, f"{description.lower()} data")
        return super()._get_dataloader(dataset, description, *args, **kwargs)


def labels_by_name(rows: Any, names: Sequence[str], argument: str) -> Any:
    """The same rows with the labels that a model means by the names of their classes.

    Names that differ in the case of letters alone are the same. Where nothing is known of the names, and where none is
    known to both, ids stay as they are; the second is said.

    Args:
        rows: any data; looked at is a `Dataset` with a column of class labels.
        names: the model's, in the order of their ids.
        argument: what the rows are called in errors.

    Raises:
        ValueError: some names are known to both and some are not, or a transform makes the labels that are counted
            otherwise.
    """
    column = next((name for name in LABEL_COLUMNS if isinstance(rows, Dataset) and name in rows.column_names), None)
    feature: Any = None if column is None else rows.features[column]
    if not isinstance(feature, ClassLabel) or column is None or all(name.startswith("LABEL_") for name in names):
        return rows
    known = {name.casefold(): label for label, name in enumerate(names)}
    found = [name.casefold() for name in feature.names]
    if found == list(known)[: len(found)] or len(known) < len(names):
        return rows
    said = f"{column}: found the classes {', '.join(feature.names)} in {argument}"
    if not known.keys() & set(found):
        warnings.warn(f"{said}, of the model {', '.join(names)}: they are taken by their ids", stacklevel=2)
        return rows
    if not set(found) <= known.keys():
        raise ValueError(f"{said}, allowed are those of the model, {', '.join(names)}, in any order")
    if rows.format["type"] == "custom":
        raise ValueError(
            f"{said} with a transform, allowed is the model's order with one: {', '.join(names)} "
            "(align_labels_with_mapping before set_transform)"
        )
    ids = torch.as_tensor(np.asarray(rows.select_columns(column).with_format("numpy")[:][column]))
    labels = torch.tensor([known[name] for name in found])
    is_class = (ids >= 0) & (ids < len(labels))
    return WithColumns(rows, **{column: torch.where(is_class, labels[ids.clamp(0, len(labels) - 1)], ids)})
