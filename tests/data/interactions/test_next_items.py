"""Rows of histories and next items: windows, negatives, batches."""

import copy
import pickle
import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from hf_ext.data import Interactions, ItemTable, NextItems, NextItemsCollator, SplitInteractions
from hf_ext.data.hashing import hashed
from hf_ext.data.interactions.negatives import NegativeSampler


def _split(lengths: list[int], items: int = 12, rows: list[int] | None = None) -> SplitInteractions:
    """Training events only."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    drawn = np.random.default_rng(0).integers(1, items + 1, size=offsets[-1])
    item_rows = drawn if rows is None else np.array(rows)
    log = Interactions(list(range(len(lengths))), ItemTable(list(range(items))), offsets, item_rows, None)
    return SplitInteractions(log, np.array(lengths), np.array(lengths), "all")


def test_a_row_for_every_target_that_something_precedes() -> None:
    data = NextItems(_split([4, 1, 2], rows=[5, 6, 7, 8, 9, 3, 4]), max_length=2)
    rows = [(row["input_ids"].tolist(), row["attention_mask"].tolist(), row["labels"].item()) for row in data]
    assert rows == [([0, 5], [0, 1], 6), ([5, 6], [1, 1], 7), ([6, 7], [1, 1], 8), ([0, 3], [0, 1], 4)]
    assert data.users.tolist() == [0, 0, 0, 2] and data.targets.tolist() == [6, 7, 8, 4]
    assert data[-1]["labels"].item() == 4
    for index in (4, -5):
        with pytest.raises(IndexError, match="index: found"):
            data[index]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 50])
def test_every_target_counts_once_and_sees_half_a_window(length: int) -> None:
    lengths = [1, 2, 3, 5, 8, 9, 23]
    numbered = [place + 1 for place in range(sum(lengths))]
    split = _split(lengths, items=len(numbered), rows=numbered)
    data = NextItems(split, targets="every", max_length=length)
    seen: dict[int, int] = {}
    for row, user in zip(data, data.users, strict=True):
        inputs, labels = row["input_ids"].tolist(), row["labels"].tolist()
        first = split.interactions.offsets[user] + 1
        for place, target in enumerate(labels):
            if target != -100:
                assert target not in seen and inputs[place] == target - 1 >= first
                seen[target] = sum(item > 0 for item in inputs[: place + 1])
    firsts = set((split.interactions.offsets[:-1] + 1).tolist())
    assert set(seen) == set(numbered) - firsts
    for target, context in seen.items():
        before = target - max(first for first in firsts if first <= target)
        assert context >= min(before, length / 2)
    if length == 50:
        assert len(data) == 6
    assert [row["labels"][-1].item() for row in data] == data.targets.tolist()


def test_negatives_are_never_the_target_and_otherwise_as_said() -> None:
    rows = [1] * 6 + [2] * 3 + [3] * 2 + [1]
    for negatives, shares in (("uniform", [1, 1, 1, 1]), ("popularity", [7, 3, 2, 0])):
        data = NextItems(_split([12], items=4, rows=rows), num_negatives=20_000, negatives=negatives)  # type: ignore[arg-type]
        for row in data.__getitems__([0, 7, 9]):
            target, drawn = row["candidate_ids"][0].item(), row["candidate_ids"][1:]
            assert row["labels"].item() == 0 and not (drawn == target).any()
            expected = np.array(shares, dtype=float)
            expected[target - 1] = 0
            found = np.bincount(drawn, minlength=5)[1:] / len(drawn)
            assert np.allclose(found, expected / expected.sum(), atol=0.02)


def test_log_q_makes_the_softmax_over_candidates_that_of_the_target_given_the_candidates() -> None:
    rows = [1] * 5 + [2] * 3 + [3] * 2
    for number in (1, 2):
        sampler = NegativeSampler(_split([10], items=3, rows=rows), number, "popularity", avoid_history=False, seed=0)
        share, true = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
        for candidates in product(range(3), repeat=1 + number):
            joint = []  # of each candidate as the target and the others as drawn, in whatever order
            for place, target in enumerate(candidates):
                others = [item for other, item in enumerate(candidates) if other != place]
                drawn = share / (1 - share[target]) * (np.arange(3) != target)
                joint.append(true[target] * np.prod(drawn[others]))
            if not all(joint):
                continue
            logits = np.log(true[list(candidates)]) - sampler.log_q(np.array(candidates) + 1)
            softmax = np.exp(logits) / np.exp(logits).sum()
            assert np.allclose(softmax, np.array(joint) / np.sum(joint), atol=1e-5)


def test_avoiding_the_history_where_possible() -> None:
    split = _split([40, 40], items=40)
    for negatives in ("uniform", "popularity"):
        plain, avoiding = (
            NextItems(split, num_negatives=30, negatives=negatives, avoid_history=avoid)  # type: ignore[arg-type]
            for avoid in (False, True)
        )
        hits = [0, 0]
        for number, data in enumerate((plain, avoiding)):
            for row, user in zip(data, data.users, strict=True):
                own = set(split.interactions.item_rows[user * 40 : user * 40 + 40].tolist())
                hits[number] += sum(item in own for item in row["candidate_ids"][1:].tolist())
        assert hits[1] < hits[0] / 4
    everything = _split([3], items=3, rows=[1, 2, 3])
    row = NextItems(everything, num_negatives=4, avoid_history=True)[0]
    assert row["candidate_ids"][0].item() == 2 and not (row["candidate_ids"][1:] == 2).any()


def _candidates(data: NextItems, indices: Any) -> list[list[int]]:
    return [row["candidate_ids"].tolist() for row in data.__getitems__(indices)]


def test_negatives_depend_on_seed_epoch_and_row_only() -> None:
    split = _split([30, 20], items=500)
    data, again, other = (NextItems(split, num_negatives=5, seed=seed) for seed in (3, 3, 4))
    every = range(len(data))
    first = _candidates(data, every)
    assert first == _candidates(again, every) == [row["candidate_ids"].tolist() for row in again]
    assert _candidates(data, [7, 3]) == [first[7], first[3]]
    assert len({tuple(row[1:]) for row in first}) == len(first)
    assert first != _candidates(other, every)
    data.set_epoch(1)
    assert data.epoch == 1 and all(a != b for a, b in zip(first, _candidates(data, every), strict=True))
    data.set_epoch(0)
    assert _candidates(data, every) == first
    fixed = NextItems(split, num_negatives=5, seed=3, fixed_negatives=True)
    fixed.set_epoch(4)
    assert _candidates(fixed, every) == first
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert _candidates(twin, every) == first and twin.digest == data.digest
    assert len({other.digest, fixed.digest, data.digest, NextItems(split).digest}) == 4


def test_words_are_random_bits() -> None:
    words = hashed(0, 1, np.arange(4000)[:, None], np.arange(5))
    assert words.shape == (4000, 5) and len(np.unique(words)) == words.size
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1)
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.02
    assert abs(np.corrcoef((words >> np.uint64(11)).astype(float).T) - np.eye(5)).max() < 0.06


def test_workers_that_stay_alive_are_told_the_epoch() -> None:
    split = _split([30], items=500)
    data = NextItems(split, num_negatives=5)
    loader = DataLoader(
        data,
        batch_size=8,
        num_workers=1,
        persistent_workers=True,
        collate_fn=NextItemsCollator(),
        multiprocessing_context="fork",
    )
    for epoch in (0, 1):
        data.set_epoch(epoch)
        loaded = torch.cat([batch["candidate_ids"] for batch in loader])
        assert loaded.tolist() == _candidates(data, range(len(data)))


@pytest.mark.parametrize("collator", [NextItemsCollator(), default_data_collator])
@pytest.mark.parametrize("options", [{}, {"targets": "every"}, {"num_negatives": 2}])
def test_training_batches(collator: Any, options: dict[str, Any]) -> None:
    data = NextItems(_split([9, 9]), max_length=5, **options)
    rows = [data[index] for index in (3, 0)]
    batch = collator(data.__getitems__([3, 0]))
    assert set(batch) == set(rows[0])
    for name, values in batch.items():
        assert torch.equal(values, torch.stack([row[name] for row in rows])) and values.dtype == rows[0][name].dtype
    assert all(batch[name].dtype == torch.int64 for name in batch if name != "candidate_log_q")


def test_batches_for_evaluation_pad_what_is_excluded() -> None:
    lengths = [5, 3]
    split = _split(lengths, rows=[1, 2, 3, 4, 5, 6, 7, 8])
    split = SplitInteractions(split.interactions, np.array([3, 1]), np.array([4, 2]), "one")
    batch = NextItemsCollator()(NextItems(split, "test").__getitems__([0, 1]))
    assert batch["exclude_ids"].tolist() == [[1, 2, 3, 4], [6, 7, 0, 0]]
    assert batch["labels"].tolist() == [5, 8] and batch["user"].tolist() == [0, 1]


def test_targets_of_a_batch_as_each_others_negatives() -> None:
    data = NextItems(_split([4, 3], items=4, rows=[1, 2, 2, 3, 4, 4, 2]), in_batch=True)
    batch = NextItemsCollator()(data.__getitems__([0, 2, 4]))
    assert batch["candidate_ids"].tolist() == [2, 3, 2] and batch["labels"].tolist() == [0, 1, 2]
    assert np.allclose(batch["candidate_log_q"], np.log([3 / 7, 1 / 7, 3 / 7]))


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("dev", {}, "part: found 'dev', allowed are 'train', 'validation', 'test'"),
        ("test", {}, "part: found 'test' without a row"),
        ("train", {"max_length": 0}, "max_length: found 0"),
        ("train", {"targets": "all"}, "targets: found 'all'"),
        ("train", {"num_negatives": 0}, "num_negatives: found 0"),
        ("train", {"num_negatives": 2, "negatives": "hard"}, "negatives: found 'hard'"),
        ("train", {"num_negatives": 2, "targets": "every"}, "num_negatives: found 2 with targets='every'"),
        ("train", {"in_batch": True, "targets": "every"}, "in_batch: found True with targets='every'"),
        ("train", {"in_batch": True, "num_negatives": 2}, "num_negatives: found 2 with in_batch"),
        ("test", {"num_negatives": 2}, "num_negatives: found 2 with part='test'"),
        ("validation", {"targets": "every"}, "targets: found 'every' with part='validation'"),
        ("train", {"seed": -1}, "seed: found -1"),
        ("train", {"head_fraction": 2}, "head_fraction: found 2"),
    ],
)
def test_options_that_do_not_fit(part: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NextItems(_split([5]), part, **options)


def test_small_catalogues_and_histories() -> None:
    one = _split([3], items=1)
    assert [row["labels"].item() for row in NextItems(one)] == [1, 1]
    with pytest.raises(ValueError, match="num_negatives: found 2 with 1 items to draw from"):
        NextItems(one, num_negatives=2)
    known = _split([3], items=5, rows=[2, 2, 2])
    with pytest.raises(ValueError, match=r"1 items to draw from \(negatives='popularity'\)"):
        NextItems(known, num_negatives=2, negatives="popularity")
    assert set(NextItems(known, num_negatives=200)[0]["candidate_ids"][1:].tolist()) == {1, 3, 4, 5}
    with pytest.raises(ValueError, match="part: found 'train' without a row"):
        NextItems(_split([1, 1]))


def test_large_logs_are_not_copied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = _split([1000] * 100, items=50)
        data = NextItems(split, max_length=200)
    held = sum(value.nbytes for value in (data.users, data.targets, data.groups, *vars(data._windows).values()))
    assert held <= 7 * 8 * len(data)  # a number each, no histories
