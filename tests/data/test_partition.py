"""Rows of one data set as those of a federation's clients."""

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_ext.data import (
    Partition,
    classes_partition,
    counts_table,
    dirichlet_partition,
    iid_partition,
    natural_partition,
)

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80)
SEEDS = st.integers(0, 2**32)
TEN = np.arange(1000) % 10
PARTITIONERS: list[Callable[..., Partition]] = [
    lambda labels, **options: dirichlet_partition(labels, 4, alpha=1, **options),
    lambda labels, **options: classes_partition(labels, 4, classes_per_client=3, **options),
    lambda labels, **options: natural_partition(labels, **options),
]


def is_complete(partition: Partition, num_rows: int) -> bool:
    """Every row is held once, and no client is without one."""
    held = np.concatenate(partition.indices)
    return sorted(held.tolist()) == list(range(num_rows)) and bool(partition.sizes.min() >= 1)


# ----------------------------------------------------------------------------------------- what holds of every split
@given(LABELS, st.integers(1, 8), st.floats(1e-6, 1e6), st.integers(1, 3), SEEDS)
@settings(deadline=None)
def test_dirichlet(labels: list[int], clients: int, alpha: float, least: int, seed: int) -> None:
    try:
        partition = dirichlet_partition(labels, clients, alpha=alpha, min_size=least, seed=seed)
    except ValueError as error:
        assert str(error).startswith(("alpha: found", "num_clients: found"))
        return
    assert len(partition) == clients and is_complete(partition, len(labels))
    assert partition.sizes.min() >= least


@given(st.lists(st.integers(8, 20), min_size=1, max_size=5), st.integers(1, 8), st.integers(1, 5), SEEDS)
@settings(deadline=None)
def test_classes(sizes: list[int], clients: int, each: int, seed: int) -> None:
    assume(each <= len(sizes) <= clients * each)
    classes = 2 * np.arange(len(sizes))
    labels = np.repeat(classes, sizes)
    partition = classes_partition(labels, clients, classes_per_client=each, seed=seed)
    assert len(partition) == clients and is_complete(partition, len(labels))
    counts = partition.counts(labels)[:, classes]
    assert ((counts > 0).sum(axis=1) == each).all()
    holders = (counts > 0).sum(axis=0)
    assert holders.min() >= 1 and np.ptp(holders) <= 1
    for held in counts.T:
        assert np.ptp(held[held > 0]) <= 1


@given(st.integers(1, 200), st.integers(1, 20), SEEDS)
def test_iid(rows: int, clients: int, seed: int) -> None:
    assume(clients <= rows)
    partition = iid_partition(rows, clients, seed=seed)
    assert len(partition) == clients and is_complete(partition, rows)
    assert np.ptp(partition.sizes) <= 1


@given(LABELS, st.integers(1, 3), SEEDS)
def test_natural(values: list[int], each: int, seed: int) -> None:
    kinds, sizes = np.unique(values, return_counts=True)
    assume(sizes.min() >= each)
    partition = natural_partition(values, clients_per_value=each, seed=seed)
    assert is_complete(partition, len(values))
    for client, rows in enumerate(partition.indices):
        assert {values[row] for row in rows} == {kinds[client // each]}
    for kind in range(len(kinds)):
        assert np.ptp(partition.sizes[kind * each : (kind + 1) * each]) <= 1


@given(LABELS, st.integers(1, 8), st.floats(0.01, 0.99), SEEDS, st.booleans())
def test_split(labels: list[int], clients: int, share: float, seed: int, stratified: bool) -> None:
    assume(clients <= len(labels))
    whole = iid_partition(len(labels), clients)
    train, test = whole.split(share, seed=seed, labels=labels if stratified else None)
    assert train.clients == test.clients == whole.clients
    for rows, trained, tested in zip(whole.indices, train.indices, test.indices, strict=True):
        assert sorted([*trained, *tested]) == rows.tolist()
        assert len(trained) >= 1 and len(tested) >= (len(rows) > 1)
        assert abs(len(tested) - share * len(rows)) <= 1


# ------------------------------------------------------------------------------------------------------ draws
@pytest.mark.parametrize("partitioner", [*PARTITIONERS[:2], lambda labels, **rest: iid_partition(1000, 4, **rest)])
def test_the_seed_draws(partitioner: Callable[..., Partition]) -> None:
    first, again, other = (partitioner(TEN, seed=seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert all((a == b).all() for a, b in zip(first.indices, again.indices, strict=True))
    before, after = (part.digest for part in first.split(0.5, seed=0)), first.split(0.5, seed=1)[0].digest
    assert after not in before


def test_rows_are_drawn_at_random() -> None:
    """Not the first rows of a class for the first client: rows may lie in an order that means something."""
    for partition in (
        dirichlet_partition(np.zeros(1000, int), 2, alpha=1e6),
        classes_partition(np.zeros(1000, int), 2, classes_per_client=1),
        iid_partition(1000, 2),
        natural_partition(np.zeros(1000, int), clients_per_value=2),
        iid_partition(1000, 2).split(0.5)[0],
    ):
        assert all(abs(rows.mean() - 499.5) < 60 for rows in partition.indices)


def test_test_rows_are_drawn_at_random() -> None:
    (tested,) = iid_partition(1000, 1).split(0.2)[1].indices
    assert len(set(np.diff(tested))) > 5  # not every fifth


def test_no_client_is_smaller_than_allowed() -> None:
    """Drawn anew until that is so; what fits at once stays."""
    small = [dirichlet_partition(TEN, 20, alpha=0.1, seed=seed).sizes.min() for seed in range(5)]
    least = [dirichlet_partition(TEN, 20, alpha=0.1, seed=seed, min_size=10).sizes.min() for seed in range(5)]
    assert min(small) < 10 <= min(least)


def test_alpha_says_how_alike_clients_are() -> None:
    even = dirichlet_partition(TEN, 10, alpha=1e6).counts(TEN)
    assert even.min() >= 9 and even.max() <= 11
    largest_share = [
        float((counts.max(axis=1) / counts.sum(axis=1)).mean())
        for counts in (dirichlet_partition(TEN, 10, alpha=alpha).counts(TEN) for alpha in (100.0, 1.0, 0.1))
    ]
    assert largest_share == sorted(largest_share)
    assert largest_share[0] < 0.15 and largest_share[-1] > 0.4


def test_every_class_has_proportions_of_its_own() -> None:
    counts = dirichlet_partition(TEN, 5, alpha=0.5).counts(TEN)
    assert len({tuple(column) for column in counts.T}) == 10


def test_stratified_tests_have_every_class() -> None:
    labels = np.repeat(np.arange(10), 100)
    whole = iid_partition(1000, 2)
    train, test = whole.split(0.1, labels=labels)
    assert (abs(test.counts(labels) - 0.1 * whole.counts(labels)) <= 1).all()
    assert (train.counts(labels) + test.counts(labels) == whole.counts(labels)).all()


def test_large_data() -> None:
    labels = np.random.default_rng(0).integers(0, 100, 10**6)
    for partition in (
        dirichlet_partition(labels, 1000, alpha=0.1),
        classes_partition(labels, 1000, classes_per_client=2),
        iid_partition(len(labels), 1000),
    ):
        assert len(partition) == 1000 and partition.counts(labels).sum() == 10**6


# ------------------------------------------------------------------------------------------------------ labels
@pytest.mark.parametrize(
    "labels",
    [
        TEN,
        TEN.tolist(),
        tuple(TEN.tolist()),
        torch.from_numpy(TEN),
        TEN.astype(np.uint8),
        [f"class {label}" for label in TEN],
        np.array([f"class {label}" for label in TEN]),
        np.array([f"class {label}" for label in TEN], dtype=object),
    ],
    ids=lambda labels: f"{type(labels).__name__}-{type(labels[0]).__name__}",
)
def test_labels_of_any_sort_give_the_same(labels: Any) -> None:
    for partitioner in PARTITIONERS:
        partition = partitioner(labels)
        assert partition.digest == partitioner(TEN).digest
        assert (partition.counts(labels) == partitioner(TEN).counts(TEN)).all()


@pytest.mark.parametrize("form", [None, "torch", "numpy", "arrow"])
@pytest.mark.parametrize("kind", [ClassLabel(10), Value("int32"), Value("string")])
def test_columns_of_data_sets(kind: Any, form: str | None) -> None:
    values = [str(label) for label in TEN] if kind == Value("string") else TEN
    rows = Dataset.from_dict({"kind": values, "x": range(1000)}, features=Features(kind=kind, x=Value("int64")))
    rows = rows.with_format(form)
    for partitioner in PARTITIONERS:
        partition = partitioner(rows, column="kind")
        assert partition.digest == partitioner(TEN).digest
        assert (partition.counts(rows, column="kind") == partition.counts(TEN)).all()
    held = partition.client(rows, 1)
    assert isinstance(held, Dataset) and held.with_format(None)["x"][:] == partition.indices[1].tolist()
    assert held.format["type"] == form


def test_selected_rows_count_as_they_are_now() -> None:
    rows = Dataset.from_dict({"label": TEN}).select(range(999, -1, -2))
    assert natural_partition(rows, column="label").clients == ("1", "3", "5", "7", "9")


def test_names_of_classes() -> None:
    features = Features(origin=ClassLabel(names=["usps", "mnist", "none"]))
    rows = Dataset.from_dict({"origin": [1, 0, 1, 1]}, features=features)
    assert natural_partition(rows, column="origin").clients == ("usps", "mnist")
    assert natural_partition(["b", "a", "b"]).clients == ("a", "b")
    partition = iid_partition(4, 2)
    assert partition.counts(rows, column="origin").shape == (2, 3)
    assert partition.counts([0, 1, 0, 1], 5).shape == (2, 5)
    named = natural_partition([3, 3, 7, 7], clients_per_value=2)
    assert named.clients == ("3/0", "3/1", "7/0", "7/1")


def test_pictures_are_not_opened() -> None:
    """They are no pictures at all, so that opening one raises."""
    features = Features(image=Image(), label=ClassLabel(10))
    broken = [{"bytes": b"no picture", "path": None}] * 100
    rows = Dataset.from_dict({"image": broken, "label": TEN[:100]}, features=features)
    with pytest.raises(Exception, match="cannot identify image"):
        rows[0]
    partition = dirichlet_partition(rows, 3, alpha=1, column="label")
    assert partition.counts(rows, column="label").sum() == 100
    assert len(partition.client(rows, 0)) == partition.sizes[0]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([], "no rows"),
        ([0, 1, -1], "-1"),
        ([0, -100], "-100"),
        ([0.5, 1.0], "0.5"),
        ([0.0, float("nan")], "nan"),
        ([True, False], "True"),
        ([0, None], "None"),
        (["a", None], "None"),
        (["a", 1], "1"),
        ([[0, 1], [1, 0]], r"an array of shape \(2, 2\)"),
        ([[0], [1, 0]], "rows of several lengths"),
        (3, r"an array of shape \(\)"),
        ({"label": [0]}, "a dict"),
        ("abc", "a str"),
        (DatasetDict(train=Dataset.from_dict({"label": [0]})), "a DatasetDict"),
    ],
    ids=str,
)
def test_labels_that_are_none(labels: Any, found: str) -> None:
    for partitioner, name in zip(PARTITIONERS, ("labels", "labels", "values"), strict=True):
        with pytest.raises(ValueError, match=f"^{name}: found {found}"):
            partitioner(labels)


def test_columns_that_are_none() -> None:
    rows = Dataset.from_dict({"label": [0, 1, None], "pair": [[0, 1]] * 3, "name": ["a", None, "b"]})
    for column, found in {
        "labels": "column: found 'labels', allowed are",
        None: "column: found None, allowed are",
        "label": "values: found nan",
        "name": "values: found None",
        "pair": "values: found an array of shape",
    }.items():
        with pytest.raises(ValueError, match=found):
            natural_partition(rows, column=column)
    with pytest.raises(ValueError, match="column: found 'label' for values of type list, allowed is None"):
        natural_partition([0, 1], column="label")


# ------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), True, "0.1", None])
def test_alphas_that_are_none(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"^alpha: found"):
        dirichlet_partition(TEN, 4, alpha=alpha)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, None])
def test_numbers_that_are_none(number: Any) -> None:
    for name, call in {
        "num_clients": lambda: dirichlet_partition(TEN, number, alpha=1),
        "min_size": lambda: dirichlet_partition(TEN, 4, alpha=1, min_size=number),
        "classes_per_client": lambda: classes_partition(TEN, 4, classes_per_client=number),
        "num_rows": lambda: iid_partition(number, 4),
        "clients_per_value": lambda: natural_partition(TEN, clients_per_value=number),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: found"):
            call()
    for seed in (-1, 0.5, None):
        with pytest.raises(ValueError, match=r"^seed: found"):
            iid_partition(10, 2, seed=seed)  # type: ignore[arg-type]


def test_more_clients_than_rows() -> None:
    for call in (
        lambda: dirichlet_partition([0, 1, 2], 4, alpha=1),
        lambda: dirichlet_partition([0, 1, 2], 2, alpha=1, min_size=2),
        lambda: classes_partition([0, 1, 2], 2, classes_per_client=2),
        lambda: iid_partition(3, 4),
    ):
        with pytest.raises(ValueError, match=r"^num_clients: found . for 3 rows"):
            call()
    with pytest.raises(ValueError, match=r"^clients_per_value: found 2, allowed are at most 1, the rows of 'b'"):
        natural_partition(["a", "a", "b"], clients_per_value=2)


def test_proportions_that_leave_a_client_nothing() -> None:
    """With a tiny alpha a class goes to one client: ten classes cannot do for twenty."""
    with pytest.raises(ValueError, match=r"^alpha: found 1e-06.*num_clients=20.*min_size=1 rows"):
        dirichlet_partition(TEN, 20, alpha=1e-6)


def test_classes_that_nobody_could_hold() -> None:
    with pytest.raises(ValueError, match=r"^classes_per_client: found 11, allowed are at most 10"):
        classes_partition(TEN, 2, classes_per_client=11)
    labels = [["cat", "dog", "cow"][row % 3] for row in range(30)]
    with pytest.raises(ValueError, match=r"nobody for the classes (cat|cow|dog), allowed are at least 2"):
        classes_partition(labels, 2, classes_per_client=1)
    with pytest.raises(ValueError, match=r"^labels: found 1 rows of class 1, allowed are 2 or more"):
        classes_partition([0] * 9 + [1], 2, classes_per_client=2)


# ------------------------------------------------------------------------------------------------------ Partition
def test_a_split_can_be_written_down() -> None:
    partition = dirichlet_partition(TEN, 7, alpha=0.3)
    written = json.dumps(partition.to_dict())
    read = Partition.from_dict(json.loads(written))
    assert read.digest == partition.digest and read.clients == partition.clients and read.num_rows == 1000
    assert json.dumps(read.to_dict()) == written
    empty = iid_partition(3, 3).split(0.5)[1]
    assert Partition.from_dict(empty.to_dict()).sizes.tolist() == [0, 0, 0]


def test_digests_tell_splits_apart() -> None:
    """Also those in which the same rows follow each other, and those of data sets of other lengths."""
    digests = {
        Partition(indices, ("a", "b"), rows).digest  # type: ignore[arg-type]
        for indices, rows in (
            (([0], [1, 2]), 3),
            (([0, 1], [2]), 3),
            (([1, 2], [0]), 3),
            (([0], [1, 2]), 4),
        )
    }
    assert len(digests) == 4
    values = struct.pack("<7q", 3, 2, 1, 2, 0, 1, 2)  # rows, clients, sizes, then who holds which
    assert hashlib.sha256(values).hexdigest() in digests


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"indices": [[0, 1], [1, 2]]}, "indices: found row 1 twice"),
        ({"indices": [[1, 0], [2]]}, "indices: found rows in another order"),
        ({"indices": [[0, 1], [3]]}, "indices: found 0 to 3, allowed are 0 to 2"),
        ({"indices": [[0, -1], [2]]}, "indices: found -1 to 2"),
        ({"indices": [[0, 1.5], [2]]}, "indices: found float64 values"),
        ({"indices": [[[0, 1]], [2]]}, "indices: found int64 values of shape"),
        ({"indices": [], "clients": []}, "indices: found no clients"),
        ({"clients": ["a"]}, "clients: found 1 different names, allowed are 2"),
        ({"clients": ["a", "a"]}, "clients: found 1 different names, allowed are 2"),
        ({"num_rows": 0}, "num_rows: found 0"),
        ({"num_rows": 4}, "digest: found"),
        ({"indices": [[0, 2], [1]]}, "digest: found"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_partitions_that_are_none(change: dict[str, Any], found: str) -> None:
    values = Partition((np.array([0, 1]), np.array([2])), ("a", "b"), 3).to_dict()
    assert Partition.from_dict(values).sizes.tolist() == [2, 1]
    with pytest.raises(ValueError, match=f"^{found}"):
        Partition.from_dict({**values, **change})
    del values["clients"]
    with pytest.raises(ValueError, match=r"^values: found no 'clients'"):
        Partition.from_dict(values)


def test_nobody_writes_into_a_partition() -> None:
    rows = np.array([0, 1])
    partition = Partition((rows,), ("a",), 2)
    rows[0] = 1
    assert partition.indices[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        partition.indices[0][0] = 1


def test_rows_of_a_client() -> None:
    partition = Partition((np.array([2, 3]), np.array([0])), ("a", "b"), 4)
    for rows in ("wxyz", list("wxyz"), np.array(list("wxyz"))):
        assert list(partition.client(rows, 0)) == ["y", "z"]
    assert len(partition) == 2
    with pytest.raises(ValueError, match=r"^number: found 2"):
        partition.client("wxyz", 2)
    with pytest.raises(ValueError, match=r"^number: found -1"):
        partition.client("wxyz", -1)
    with pytest.raises(ValueError, match=r"^dataset: found 3 rows, allowed are the 4"):
        partition.client("wxy", 0)
    assert partition.counts([0, 1, 1, 0]).tolist() == [[1, 1], [1, 0]]
    with pytest.raises(ValueError, match=r"^labels: found 3 rows, allowed are the 4"):
        partition.counts([0, 1, 1])
    with pytest.raises(ValueError, match=r"^num_classes: found 1"):
        partition.counts([0, 1, 1, 0], 1)
    with pytest.raises(ValueError, match=r"^test_share: found 1.0"):
        partition.split(1.0)


def test_counts_as_a_table() -> None:
    table = counts_table(np.array([[1, 0], [2, 3]]), ["a|b", "c"], ["cat", "dog"])
    assert table.splitlines() == [
        "| client | cat | dog | rows |",
        "| --- | --- | --- | --- |",
        "| a\\|b | 1 | 0 | 1 |",
        "| c | 2 | 3 | 5 |",
        "| all | 3 | 3 | 6 |",
    ]
    assert counts_table(np.array([[1]])).splitlines()[2] == "| 0 | 1 | 1 |"
    for counts, names, found in (
        (np.zeros(3, int), None, "counts: found the shape"),
        (np.zeros((2, 2), int), ["a"], "clients: found 1 names, allowed are 2"),
    ):
        with pytest.raises(ValueError, match=found):
            counts_table(counts, names)
