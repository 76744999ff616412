"""Unlearning tasks from a data set with fine and coarse labels, in which label and concept may not coincide."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

TASKS = ("all_matched", "target_mismatch", "model_mismatch", "data_mismatch")


@dataclass(frozen=True)
class MismatchSplit:
    """An unlearning task. The model's label is in the column `labels` of all its data sets.

    Args:
        forget: the data handed in, D_f.
        remaining: all others, D_un, the hidden ones among them.
        hidden: which rows of `remaining` belong to the concept too, the "false retaining" data D_fr.
        affected: which other rows of `remaining` share the model's label with the concept, D_ar.
        num_hidden_groups: how many of the model's labels in `remaining` belong to the concept.
        label_column: the column that the model's labels come from.
    """

    forget: Dataset
    remaining: Dataset
    hidden: NDArray[np.bool_]
    affected: NDArray[np.bool_]
    num_hidden_groups: int
    label_column: str
    _concept: tuple[str, frozenset[int]]

    @property
    def retain(self) -> Dataset:
        """The remaining data without the hidden rows: training data of the retrained model."""
        return self.remaining.select(np.flatnonzero(~self.hidden))

    def in_concept(self, dataset: Dataset) -> NDArray[np.bool_]:
        """Which rows of a data set with the same columns, such as the test data, belong to the concept."""
        column, classes = self._concept
        return np.isin(_classes(dataset, column), list(classes))

    def labelled(self, dataset: Dataset) -> Dataset:
        """A data set with the same columns, with the model's labels in `labels`."""
        return _labelled(dataset, self.label_column)


def mismatch_split(
    dataset: Dataset,
    fine_column: str,
    coarse_column: str,
    given: int | str | Sequence[int | str],
    *,
    task: Literal["all_matched", "target_mismatch", "model_mismatch", "data_mismatch"],
) -> MismatchSplit:
    """Split a data set into what is handed in to be forgotten and what remains.

    | task | the model's labels | handed in | the concept |
    |---|---|---|---|
    | `all_matched` | fine | the given classes | these |
    | `target_mismatch` | fine | the given classes | their whole coarse classes |
    | `model_mismatch` | coarse | the given classes | these |
    | `data_mismatch` | coarse | the given classes | their whole coarse classes |

    Args:
        dataset: with a column of fine classes, each within one class of the column of coarse ones.
        fine_column, coarse_column: their names.
        given: the fine classes handed in, as numbers or names.
        task: see above.

    Raises:
        ValueError: unknown columns, classes or task, a fine class in two coarse ones, or nothing that remains.
    """
    if task not in TASKS:
        raise ValueError(f"task: found {task!r}, allowed are {', '.join(TASKS)}")
    for name, column in (("fine_column", fine_column), ("coarse_column", coarse_column)):
        if column not in dataset.column_names:
            raise ValueError(f"{name}: found {column!r}, allowed are {dataset.column_names}")
    fine, coarse = _classes(dataset, fine_column), _classes(dataset, coarse_column)
    wanted = _numbers(dataset, fine_column, [given] if isinstance(given, int | str) else given)
    if not wanted or not wanted <= set(fine.tolist()):
        raise ValueError(f"given: found {sorted(wanted)}, allowed are classes that occur in {fine_column!r}")
    above = {(int(f), int(c)) for f, c in zip(fine, coarse, strict=True)}
    if len(above) != len(set(fine.tolist())):
        raise ValueError(
            f"coarse_column: found classes of {fine_column!r} in several of {coarse_column!r}, allowed is one"
        )
    parents = frozenset(c for f, c in above if f in wanted)
    concept = (coarse_column, parents) if task in ("target_mismatch", "data_mismatch") else (fine_column, wanted)
    label_column = fine_column if task in ("all_matched", "target_mismatch") else coarse_column
    handed_in, in_concept = np.isin(fine, list(wanted)), np.isin(_classes(dataset, concept[0]), list(concept[1]))
    if handed_in.all():
        raise ValueError(f"given: found all classes of {fine_column!r}, allowed are some, so that others remain")
    labels = _classes(dataset, label_column)
    rest = ~handed_in
    hidden = in_concept & rest
    labelled = _labelled(dataset, label_column)
    return MismatchSplit(
        forget=labelled.select(np.flatnonzero(handed_in)),
        remaining=labelled.select(np.flatnonzero(rest)),
        hidden=hidden[rest],
        affected=(np.isin(labels, labels[in_concept]) & ~in_concept)[rest],
        num_hidden_groups=len(np.unique(labels[hidden])),
        label_column=label_column,
        _concept=concept,
    )


def _classes(dataset: Dataset, column: str) -> NDArray[np.int64]:
    return np.asarray(dataset.with_format("numpy")[column][:], dtype=np.int64)


def _numbers(dataset: Dataset, column: str, given: Sequence[int | str]) -> frozenset[int]:
    feature: Any = dataset.features[column]
    try:
        return frozenset(feature.str2int(one) if isinstance(one, str) else int(one) for one in given)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"given: found {list(given)!r}, allowed are classes of {column!r}") from error


def _labelled(dataset: Dataset, column: str) -> Dataset:
    if column == "labels":
        return dataset
    feature, values, form = dataset.features[column], _classes(dataset, column), dataset.format
    others = dataset.with_format(None)
    if "labels" in others.column_names:
        others = others.remove_columns("labels")
    if others._indices is not None:  # add_column would write the rows anew and forget the features' types (Array3D)
        others = others.flatten_indices(features=others.features)
    labelled = others.add_column("labels", values.tolist(), feature=feature)
    return labelled.with_format(form["type"], **form["format_kwargs"])
