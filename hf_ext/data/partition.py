"""Rows of one data set, divided among the clients of a federation."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from hf_ext._arguments import Bounds, Count, check_value
from hf_ext._reports import markdown_table
from hf_ext.data.columns import MOST_GROUPS
from hf_ext.data.labels import label_names, label_values

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Partition:
    """Which rows of a data set each client holds; no row is held twice.

    Args:
        indices: of every client's rows, `[n_i]` each, ascending.
        clients: names, one for each.
        num_rows: of the whole data set, held or not.

    Raises:
        ValueError: rows that are no integers in `[0, num_rows)`, that are held twice or are not in ascending order,
            or names that are not as many as the clients or not different.
    """

    indices: tuple[Indices, ...]
    clients: tuple[str, ...]
    num_rows: int

    def __post_init__(self) -> None:
        check_value("num_rows", self.num_rows, Count)
        object.__setattr__(self, "indices", tuple(map(_rows, self.indices)))
        object.__setattr__(self, "clients", tuple(map(str, self.clients)))
        object.__setattr__(self, "num_rows", int(self.num_rows))
        if len(self.clients) != len(self.indices) or len(set(self.clients)) != len(self.clients):
            raise ValueError(
                f"clients: found {len(set(self.clients))} different names, allowed are {len(self.indices)}, one for "
                "each client"
            )
        if not self.indices:
            raise ValueError("indices: found no clients, allowed is one or more")
        rows = np.concatenate(self.indices)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_rows:
            raise ValueError(f"indices: found {rows.min()} to {rows.max()}, allowed are 0 to {self.num_rows - 1}")
        if len(rows) and np.bincount(rows).max() > 1:
            raise ValueError(f"indices: found row {np.bincount(rows).argmax()} twice, allowed is once")
        if any((np.diff(held) < 0).any() for held in self.indices):
            raise ValueError("indices: found rows in another order, allowed is an ascending one")

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def sizes(self) -> Indices:
        """How many rows each client holds, `[clients]`."""
        return np.array([len(rows) for rows in self.indices], dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256 of who holds which row: equal for equal partitions, on every machine."""
        digest = hashlib.sha256(np.array([self.num_rows, len(self), *self.sizes], dtype="<i8").tobytes())
        for rows in self.indices:
            digest.update(rows.astype("<i8").tobytes())
        return digest.hexdigest()

    def client(self, dataset: Any, number: int) -> Any:
        """The rows that a client holds: of a `datasets.Dataset` by its `select`, else as a `torch` `Subset`.

        Args:
            dataset: the one that was divided, or another with the same rows; anything with a length and rows.
            number: of the client, from 0.

        Raises:
            ValueError: a data set of another length, or no such client.
        """
        check_value("number", number, Annotated[int, Bounds(at_least=0, at_most=len(self) - 1)])
        if len(dataset) != self.num_rows:
            raise ValueError(f"dataset: found {len(dataset)} rows, allowed are the {self.num_rows} that were divided")
        if isinstance(dataset, Dataset):
            return dataset.select(self.indices[number])
        from torch.utils.data import Subset

        return Subset(dataset, self.indices[number].tolist())

    def counts(self, labels: Any, num_classes: int | None = None, *, column: str | None = None) -> Indices:
        """How many rows of each class each client holds, `[clients, classes]`.

        Args:
            labels, column: of all rows of the data set, as for `dirichlet_partition`. Names are classes in sorted
                order.
            num_classes: by default those that the column's `ClassLabel` names, else up to the largest label.

        Raises:
            ValueError: labels of another number of rows, or of more classes.
        """
        values = self._of_all_rows(labels, column)
        names = label_names(labels, column)
        if values.dtype.kind == "U":
            values = np.unique(values, return_inverse=True)[1]
        largest = int(values.max())
        classes = num_classes if num_classes is not None else max(largest + 1, len(names or ()))
        check_value("num_classes", classes, Annotated[int, Bounds(at_least=largest + 1, at_most=MOST_GROUPS)])
        cells = values[np.concatenate(self.indices)] + classes * np.repeat(np.arange(len(self)), self.sizes)
        return np.bincount(cells, minlength=classes * len(self)).reshape(len(self), classes).astype(np.int64)

    def split(
        self, test_share: float, *, seed: int = 0, labels: Any = None, column: str | None = None
    ) -> tuple["Partition", "Partition"]:
        """Every client's rows, divided into those to train on and those to test on.

        A client tests on at least one row, and trains on at least one: of a single row nothing is tested.

        Args:
            test_share: of each client's rows, in (0, 1).
            seed: draws the rows.
            labels, column: of all rows of the data set, for the same share of every class, up to rounding.

        Raises:
            ValueError: a share out of bounds, or labels of another number of rows.
        """
        check_value("test_share", test_share, Annotated[float, Bounds(above=0, below=1)])
        check_value("seed", seed, Annotated[int, Bounds(at_least=0)])
        values = np.zeros(self.num_rows, np.int64) if labels is None else self._of_all_rows(labels, column)
        rng = np.random.default_rng(seed)
        parts: tuple[list[Indices], list[Indices]] = ([], [])
        for rows in self.indices:
            number = min(max(1, round(test_share * len(rows))), max(0, len(rows) - 1))
            by_class = rows[np.lexsort((rng.random(len(rows)), values[rows]))]
            # one of each stretch of equal length: so many of a class are drawn as it has stretches
            places = ((np.arange(number) + rng.random()) * len(rows) / max(1, number)).astype(np.int64)
            tested = np.isin(np.arange(len(rows)), places)
            parts[0].append(np.sort(by_class[~tested]))
            parts[1].append(np.sort(by_class[tested]))
        train, test = (Partition(tuple(part), self.clients, self.num_rows) for part in parts)
        return train, test

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with the digest."""
        return {
            "num_rows": self.num_rows,
            "clients": list(self.clients),
            "indices": [rows.tolist() for rows in self.indices],
            "digest": self.digest,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Partition":
        """What `to_dict` wrote.

        Raises:
            ValueError: something else, or rows that are not those of the digest.
        """
        missing = [name for name in ("num_rows", "clients", "indices", "digest") if name not in values]
        if missing:
            raise ValueError(f"values: found no {missing[0]!r}, allowed is what Partition.to_dict returned")
        partition = cls(tuple(values["indices"]), tuple(values["clients"]), values["num_rows"])
        if partition.digest != values["digest"]:
            raise ValueError(f"digest: found {values['digest']!r}, allowed is that of the rows, {partition.digest!r}")
        return partition

    def _of_all_rows(self, labels: Any, column: str | None) -> NDArray[Any]:
        values = label_values(labels, column)
        if len(values) != self.num_rows:
            raise ValueError(f"labels: found {len(values)} rows, allowed are the {self.num_rows} that were divided")
        return values


def counts_table(
    counts: NDArray[np.integer[Any]], clients: Sequence[str] | None = None, classes: Sequence[str] | None = None
) -> str:
    """How many rows of each class each client holds, as a markdown table with sums.

    Args:
        counts: `[clients, classes]`, as of `Partition.counts`.
        clients, classes: names; numbers by default.

    Raises:
        ValueError: counts of another shape, or names for another number of clients or classes.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2:
        raise ValueError(f"counts: found the shape {counts.shape}, allowed is (clients, classes)")
    for name, given, number in (("clients", clients, counts.shape[0]), ("classes", classes, counts.shape[1])):
        if given is not None and len(given) != number:
            raise ValueError(f"{name}: found {len(given)} names, allowed are {number}, as the counts have")
    columns = [str(name) for name in classes or range(counts.shape[1])]
    rows = [
        [str(name), *map(str, row), str(row.sum())]
        for name, row in zip(clients or range(counts.shape[0]), counts, strict=True)
    ]
    return markdown_table(
        ["client", *columns, "rows"], [*rows, ["all", *map(str, counts.sum(axis=0)), str(counts.sum())]]
    )


def _rows(given: Any) -> Indices:
    rows = np.asarray(given)
    if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
        raise ValueError(f"indices: found {rows.dtype} values of shape {rows.shape}, allowed are lists of integers")
    rows = rows.astype(np.int64)  # a copy, so that nobody else writes into it
    rows.setflags(write=False)
    return rows
