"""Training rows with candidates that stay the same: the next item first, then others, drawn once and for all."""

import hashlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from hf_ext.data.interactions.negatives import NegativeSampler

#: column of the teachers' effect on a row's candidates, `[C]`, and of its weight in the next item's own loss
EFFECT, WEIGHT = "effect_logits", "row_weight"
_ROWS_AT_ONCE = 4096


class CandidateRows(Dataset[dict[str, Any]]):
    """The rows of a data set, each with candidates, and with what else is known of its number.

    Works for any map-style data set of dicts and copies nothing; all other attributes are the data set's. The others
    are those of `NextItems(..., num_negatives=C - 1, fixed_negatives=True)`: uniform over the items that are not the
    next one, with replacement, and a function of the seed, the row's number and their place alone.

    Args:
        dataset: with a length; its rows have `input_ids`, int64 `[L]`, and `labels`, the next item's row.
        num_items: of the catalogue; items have the rows 1 to `num_items`.
        num_candidates: C.
        seed: of the candidates.
        **columns: by name, an array of shape `[N, ...]`, N the length of the data set.

    Rows have `candidate_ids`, int64 `[C]` with the next item first, and `labels`, its place, 0.
    """

    def __init__(
        self, dataset: Any, num_items: int, num_candidates: int, *, seed: int = 0, **columns: NDArray[Any]
    ) -> None:
        self.dataset, self.columns = dataset, columns
        self.num_items, self.num_candidates, self.seed = num_items, num_candidates, seed
        catalogue: Any = SimpleNamespace(num_items=num_items)  # all that uniform draws need to know of a split
        self._sampler = NegativeSampler(catalogue, num_candidates - 1, "uniform", avoid_history=False, seed=seed)

    def with_columns(self, **columns: NDArray[Any]) -> "CandidateRows":
        """The same rows with further columns."""
        own = {**self.columns, **columns}
        return CandidateRows(self.dataset, self.num_items, self.num_candidates, seed=self.seed, **own)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # while being unpickled there is none yet
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a batch, which a DataLoader asks for at once.

        Raises:
            IndexError: an index out of range.
        """
        numbers = np.asarray(indices, dtype=np.int64)
        if numbers.size and not -len(self) <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"index: found {numbers.min()} to {numbers.max()}, allowed are rows of {len(self)}")
        numbers = numbers % len(self)
        rows = read_rows(self.dataset, numbers.tolist())
        targets = np.array([int(row["labels"]) for row in rows], dtype=np.int64)
        others = self._sampler.draw(numbers, numbers, targets, epoch=0)
        own = {"candidate_ids": np.concatenate([targets[:, None], others], axis=1), "labels": np.zeros_like(targets)}
        own |= {name: values[numbers] for name, values in self.columns.items()}
        values = zip(*(torch.from_numpy(column).unbind() for column in own.values()), strict=True)
        return [{**row, **dict(zip(own, some, strict=True))} for row, some in zip(rows, values, strict=True)]


def read_rows(dataset: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of a data set, at once where it can."""
    fetch = getattr(dataset, "__getitems__", None)
    return list(fetch(indices)) if fetch else [dataset[index] for index in indices]


def targets_of(dataset: Any) -> NDArray[np.int64]:
    """The next item's row of every row, `[N]`: what a data set calls `targets`, or its labels."""
    known = getattr(dataset, "targets", None)
    if known is not None:
        return np.asarray(known, dtype=np.int64)
    return np.array([int(row["labels"]) for part in _parts(dataset) for row in part], dtype=np.int64)


def _parts(dataset: Any) -> Iterator[list[dict[str, Any]]]:
    for first in range(0, len(dataset), _ROWS_AT_ONCE):
        yield read_rows(dataset, range(first, min(first + _ROWS_AT_ONCE, len(dataset))))


def fingerprint(dataset: Any) -> str:
    """SHA-256 of all histories and next items, read once."""
    digest = hashlib.sha256()
    for part in _parts(dataset):
        for row in part:
            for name in ("input_ids", "labels"):
                digest.update(np.ascontiguousarray(row[name], dtype=np.int64).tobytes() + b"|")
    return digest.hexdigest()


def check_rows(dataset: Any, num_items: int, num_candidates: int) -> None:
    """Refuse training rows that cannot get candidates.

    Raises:
        ValueError: rows without a length, histories or one next item each, or with candidates of their own; data that
            are not to train on; a catalogue that is too small.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"train_dataset: found a {type(dataset).__name__} without a length, allowed are map-style data sets"
        )
    if (part := getattr(dataset, "part", "train")) != "train":
        raise ValueError(f"train_dataset: found the part {part!r}, allowed is 'train'")
    if num_items < 2:
        raise ValueError(f"model: found a catalogue of {num_items} item, allowed are 2 or more to tell apart")
    if num_candidates > num_items:
        raise ValueError(
            f"causald_num_candidates: found {num_candidates}, allowed are at most {num_items}, the items there are"
        )
    (row,) = read_rows(dataset, [0])
    if missing := [name for name in ("input_ids", "labels") if name not in row]:
        raise ValueError(f"train_dataset: found rows without {' and '.join(missing)}, allowed are rows with both")
    if "candidate_ids" in row:
        raise ValueError(
            "train_dataset: found rows with candidate_ids, allowed are rows without: causald_num_candidates are drawn "
            "here, the same in every epoch, for teachers and student to see"
        )
    if np.ndim(row["labels"]):
        raise ValueError(
            "train_dataset: found rows with a next item at every position, allowed is one a row "
            "(NextItems(..., targets='last'))"
        )
    known = getattr(getattr(getattr(dataset, "split", None), "interactions", None), "items", None)
    if known is not None and len(known.ids) != num_items:
        raise ValueError(f"model: found num_items={num_items}, allowed is {len(known.ids)}, as the training data have")
