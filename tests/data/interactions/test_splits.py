"""Splits by time: which events are for what, and that what training reads does not depend on the future."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from hf_ext.data import Interactions, ItemTable, NextItems, SplitInteractions, leave_one_out, split_by_time


def _log(lengths: list[int], items: int = 9, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.concatenate([np.sort(rng.integers(1000, size=length)) for length in lengths])
    rows = rng.integers(1, items + 1, size=offsets[-1])
    return Interactions(list(range(len(lengths))), ItemTable(list(range(items))), offsets, rows, times)


def _places(split: SplitInteractions, part: str) -> list[int]:
    starts, ends = split.bounds(part)
    return [place for start, end in zip(starts, ends, strict=True) for place in range(start, end)]


def test_leave_one_out() -> None:
    with pytest.warns(UserWarning, match="2 of 4 users have 3 events or fewer, and are in training only"):
        split = leave_one_out(_log([5, 3, 1, 4]), validation=2, test=1)
    assert split.train_ends.tolist() == [2, 3, 1, 1] and split.validation_ends.tolist() == [4, 3, 1, 3]
    assert split.activity.tolist() == [2, 3, 1, 1]
    assert _places(split, "validation") == [2, 3, 10, 11] and _places(split, "test") == [4, 12]
    rows = split.interactions.item_rows[[0, 1, 5, 6, 7, 8, 9]]
    assert split.item_counts.tolist() == np.bincount(rows, minlength=10).tolist()
    assert split.in_training.nonzero()[0].tolist() == [0, 1, 5, 6, 7, 8, 9]


def test_split_by_time_has_one_moment_for_all() -> None:
    log = _log([40, 30, 2, 50, 1])
    with pytest.warns(UserWarning, match="of 5 users have training events only"):
        split = split_by_time(log, validation=0.2, test=0.1)
    assert log.times is not None
    train, validation, test = (log.times[_places(split, part)] for part in ("train", "validation", "test"))
    assert train.max() < validation.min() <= validation.max() < test.min()
    assert len(train) + len(validation) + len(test) == len(log)
    assert abs(len(test) / len(log) - 0.1) < 0.03 and abs(len(validation) / len(log) - 0.2) < 0.03


def test_users_who_come_late_have_no_training_events_and_still_a_history() -> None:
    offsets = np.array([0, 7, 10])
    rows = np.arange(1, 11)
    log = Interactions([0, 1], ItemTable(list(range(10))), offsets, rows, np.arange(10))
    with pytest.warns(UserWarning, match="1 of 2 users"):
        split = split_by_time(log, validation=0, test=0.3)
    assert split.activity.tolist() == [7, 0]
    test = NextItems(split, "test", max_length=3)
    assert test.targets.tolist() == [9, 10]  # 8 is the user's first: nothing to go by
    assert test[1]["input_ids"].tolist() == [0, 8, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.5}, r"validation: found 1.5"),
        ({"validation": 0.5, "test": 0.5}, "validation: found 0.5 beside test=0.5"),
        ({"test": float("nan")}, "test: found nan"),
    ],
)
def test_shares(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_by_time(_log([5, 5]), **options)


def test_what_cannot_be_split() -> None:
    log = _log([2, 2])
    with pytest.raises(ValueError, match="interactions: found at most 2 events of a user, allowed are at least 3"):
        leave_one_out(log)
    for options in ({"validation": -1}, {"test": 1.0}, {"test": True}):
        with pytest.raises(ValueError, match=r"found .*allowed are integers >= 0"):
            leave_one_out(log, **options)  # type: ignore[arg-type]
    untimed = Interactions(log.user_ids, log.items, log.offsets, log.item_rows, None)
    with pytest.raises(ValueError, match="interactions: found no times"):
        split_by_time(untimed)
    same = Interactions(log.user_ids, log.items, log.offsets, log.item_rows, np.zeros(4))
    with pytest.raises(ValueError, match="interactions: found 100% of the events at the earliest time"):
        split_by_time(same)


@pytest.mark.parametrize(
    ("activity", "share", "head"),
    [
        ([5, 4, 3, 2, 1], 0.2, [1, 0, 0, 0, 0]),
        ([5, 5, 3, 2, 1], 0.2, [0, 0, 0, 0, 0]),
        ([5, 5, 3, 2, 1], 0.4, [1, 1, 0, 0, 0]),
        ([2, 2, 2], 0.5, [0, 0, 0]),
        ([2, 2, 2], 1.0, [1, 1, 1]),
        ([2, 3], 0.0, [0, 0]),
    ],
)
def test_head_users(activity: list[int], share: float, head: list[int]) -> None:
    split = SplitInteractions(_log(activity), np.array(activity), np.array(activity), "all")
    assert split.groups(share).tolist() == head


def _with_rows(split: SplitInteractions, rows: np.ndarray) -> SplitInteractions:
    log = split.interactions
    changed = Interactions(log.user_ids, log.items, log.offsets, rows, log.times)
    return SplitInteractions(changed, split.train_ends, split.validation_ends, split.method)


def _training(split: SplitInteractions) -> list[Any]:
    """All that training reads."""
    options: list[dict[str, Any]] = [
        {"targets": "every"},
        {"in_batch": True},
        {"num_negatives": 3},
        {"num_negatives": 3, "negatives": "popularity", "avoid_history": True},
    ]
    found: list[Any] = [split.item_counts.tolist(), split.activity.tolist(), split.groups().tolist()]
    for option in options:
        rows = NextItems(split, max_length=4, **option)
        found += [rows.targets.tolist(), rows.groups.tolist()]
        found += [
            {name: values.tolist() for name, values in row.items()} for row in rows.__getitems__(range(len(rows)))
        ]
    return found


@pytest.mark.parametrize("make", [leave_one_out, split_by_time])
def test_the_future_changes_nothing_that_training_reads(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = make(_log([9, 12, 5, 30, 8], items=20), validation=0.2 if make is split_by_time else 2)
    rng = np.random.default_rng(1)
    future = np.flatnonzero(~split.in_training)
    rows = split.interactions.item_rows.copy()
    rows[future] = rng.permutation(rows[future])
    assert (rows != split.interactions.item_rows).any()
    assert _training(_with_rows(split, rows)) == _training(split)
    rows[future] = 1  # not even what it consists of
    assert _training(_with_rows(split, rows)) == _training(split)
    rows[0] = rows[0] % 20 + 1
    assert _training(_with_rows(split, rows)) != _training(split)


def test_evaluation_knows_all_that_came_before_and_nothing_later() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = leave_one_out(_log([9, 2, 5]))
    rows, offsets = split.interactions.item_rows, split.interactions.offsets
    for part, back in (("validation", 2), ("test", 1)):
        data = NextItems(split, part, max_length=3)  # type: ignore[arg-type]
        assert data.users.tolist() == [0, 2]
        for row, user in zip(data, (0, 2), strict=True):
            target = offsets[user + 1] - back
            assert row["labels"].item() == rows[target] and row["user"].item() == user
            assert row["input_ids"].tolist() == rows[target - 3 : target].tolist()
            assert row["exclude_ids"].tolist() == rows[offsets[user] : target].tolist()
            assert all(values.dtype == torch.int64 for values in row.values())
