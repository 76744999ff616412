"""Where targets stand among all items: inside of a Trainer, by a model alone, by the baselines."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_rows import NUM_ITEMS, ToyModel, ToyRows, collate, toy_rows

from hf_ext.metrics import RankedTargets, item_knn_ranks, popularity_ranks, rank_targets, rankings, ranks_of_logits


def _same(a: RankedTargets, b: RankedTargets) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(vars(a).values(), vars(b).values(), strict=True))


# ------------------------------------------------------------------------------------------------ of logits
def test_what_evaluation_keeps_of_logits() -> None:
    logits = torch.tensor([[0.5, 0.9, 0.1, 0.9], [0.3, 0.2, 0.2, 0.2], [0.0, 1.0, 2.0, 3.0]])
    logits[0, 1] = logits[2, :2] = -torch.inf
    ranks, count, top, mean = ranks_of_logits(logits, torch.tensor([3, 2, 1]), k=3)
    assert ranks.tolist() == [3, 4, 3]  # the target of the last row has -inf, yet is a candidate, the last
    assert mean.tolist() == [3, 3, 3]
    assert count.tolist() == [3, 4, 3]
    assert top.tolist() == [[4, 1, 3], [1, *top[1, 1:].tolist()], [4, 3, 1]]
    assert ranks_of_logits(logits, torch.tensor([3, 2, 1]))[2].shape == (3, 4)  # of fewer items than k, all


def test_the_logits_may_come_with_other_outputs() -> None:
    logits, labels = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3])
    for alone, among in zip(
        ranks_of_logits(logits, labels), ranks_of_logits((logits, torch.zeros(3, 2)), labels), strict=True
    ):
        assert torch.equal(alone, among)


def test_rows_with_nan_have_no_rank() -> None:
    logits = torch.zeros(2, 3)
    logits[1, 2] = torch.nan
    ranks, _, _, mean = ranks_of_logits(logits, torch.tensor([1, 1]))
    assert ranks.isnan().tolist() == mean.isnan().tolist() == [False, True]


@pytest.mark.parametrize("labels", [[0, 1], [1, 4], [-100, 1]])
def test_labels_are_rows(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"labels: found .* allowed are item rows in \[1, 3\]"):
        ranks_of_logits(torch.zeros(2, 3), torch.tensor(labels))
    with pytest.raises(ValueError, match=r"labels: found shape \(2, 3\) for logits \(2, 3\)"):
        ranks_of_logits(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.int64))


# ------------------------------------------------------------------------------------------------ by a model
def _by_hand(scores: np.ndarray, rows: ToyRows) -> list[tuple[int, int, list[int]]]:
    """Rank, number of candidates and the best three, by sorting."""
    found = []
    for own, (user, place), target in zip(scores, rows.places, rows.targets, strict=True):
        candidates = [r for r in range(1, NUM_ITEMS + 1) if r == target or r not in rows.histories[user][:place]]
        ordered = sorted(candidates, key=lambda row: -own[row - 1])
        found.append((1 + ordered.index(target), len(ordered), [*ordered, 0, 0][:3]))
    return found


@pytest.mark.parametrize("most_scores", [2**25, 2 * NUM_ITEMS, 1])
def test_a_model_ranks_as_sorting_does(monkeypatch: pytest.MonkeyPatch, most_scores: int) -> None:
    monkeypatch.setattr(rankings, "_MOST_SCORES", most_scores)
    model, rows = ToyModel().train(), toy_rows()
    found = rank_targets(model, rows, batch_size=3, k=3, collator=collate)
    last = torch.stack([rows[index]["input_ids"][-1] for index in range(len(rows))])
    expected = _by_hand(model.table.weight.detach()[last].numpy(), rows)
    assert found.ranks.tolist() == [rank for rank, _, _ in expected]
    assert found.num_candidates.tolist() == [count for _, count, _ in expected]
    assert found.top.tolist() == [top for _, _, top in expected]
    assert max(model.rows) == {2**25: 3, 2 * NUM_ITEMS: 2, 1: 1}[most_scores]
    assert model.training  # as before, though dropout was off


def test_an_item_that_is_taken_again_is_a_candidate() -> None:
    rows = toy_rows()
    again = rows.users.tolist().index(2)
    assert rows[again]["exclude_ids"].tolist() == [3, 2]
    found = rank_targets(ToyModel(), rows, collator=collate)
    assert found.num_candidates[again] == NUM_ITEMS - 1


def test_outputs_that_are_no_scores_of_all_items_are_refused() -> None:
    model = ToyModel()
    with pytest.raises(ValueError, match="scores: found NaN"):
        torch.nn.init.constant_(model.table.weight, torch.nan)
        rank_targets(model, toy_rows(), collator=collate)
    model.forward = lambda input_ids: SimpleNamespace(logits=torch.zeros(len(input_ids), 3))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"scores: found shape \(7, 3\), allowed is \[7, 9\]"):
        rank_targets(model.train(), toy_rows(), collator=collate)
    assert model.training


# ------------------------------------------------------------------------------------------------ baselines
def test_popularity_is_that_of_training_events() -> None:
    rows = toy_rows()
    found = popularity_ranks(rows, k=4, collator=collate)
    counts = rows.split.item_counts
    assert counts[9] == 0 and counts[4] == 1  # the targets of others do not count
    assert found.top[0, 0] == 7  # of what the first user has not had, alone with two events
    for place, ((user, at), target) in enumerate(zip(rows.places, rows.targets, strict=True)):
        rivals = set(range(1, 10)) - set(rows.histories[user][:at]) - {int(target)}
        before = sum(counts[row] >= counts[target] for row in rivals)
        tied = sum(counts[row] == counts[target] for row in rivals)
        assert found.ranks[place] == 1 + before
        assert found.mean_ranks[place] == 1 + before - tied / 2


def _naive_neighbours(rows: ToyRows, neighbours: int) -> np.ndarray:
    taken = np.zeros((len(rows.split.training), NUM_ITEMS))
    for user, events in enumerate(rows.split.training):
        taken[user, np.array(events) - 1] = 1
    lengths = np.linalg.norm(taken, axis=0)
    cosine = taken.T @ taken / np.maximum(np.outer(lengths, lengths), 1e-12)
    np.fill_diagonal(cosine, 0)
    kept = np.zeros_like(cosine)
    for item, row in enumerate(cosine):
        nearest = sorted(range(NUM_ITEMS), key=lambda other: (-row[other], other))[:neighbours]
        kept[item, nearest] = row[nearest]
    return kept


@pytest.mark.parametrize("neighbours", [1, 3, 100])
@pytest.mark.parametrize("most_products", [2**24, 5])
def test_neighbours_are_the_naive_ones(monkeypatch: pytest.MonkeyPatch, neighbours: int, most_products: int) -> None:
    from hf_ext.metrics import ranking_baselines

    monkeypatch.setattr(ranking_baselines, "_MOST_PRODUCTS", most_products)
    rows = toy_rows()
    similarities = _naive_neighbours(rows, neighbours)
    found = ranking_baselines._similarities(rows.split, neighbours)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.toarray(), similarities, atol=1e-12)
    scores = np.stack(
        [similarities[np.unique(rows.histories[user][:place]) - 1].sum(0) for user, place in rows.places]
    )
    ranked = item_knn_ranks(rows, neighbours=neighbours, k=3, collator=collate)
    for place, (own, (user, at), target) in enumerate(zip(scores, rows.places, rows.targets, strict=True)):
        rivals = set(range(1, 10)) - set(rows.histories[user][:at]) - {int(target)}
        assert ranked.ranks[place] == 1 + sum(own[row - 1] >= own[target - 1] - 1e-12 for row in rivals)


def test_baselines_do_not_see_targets() -> None:
    """Other targets, the same training events: other ranks, the same recommendations."""
    one = toy_rows()
    histories = [[*events[:end], *([9] * (len(events) - end))] for events, end in _halves(one)]
    other = ToyRows(histories, one.split.train_ends.tolist())
    first = [place for place, (user, at) in enumerate(one.places) if at == one.split.train_ends[user]]
    for ranks in (popularity_ranks, item_knn_ranks):
        found: list[Any] = [ranks(rows, k=9, collator=collate) for rows in (one, other)]
        assert np.array_equal(found[0].top[first[:2]], found[1].top[first[:2]])
        assert not _same(*found)


def _halves(rows: ToyRows) -> list[tuple[list[int], int]]:
    return list(zip(rows.histories, rows.split.train_ends.tolist(), strict=True))


def test_neighbours_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="neighbours: found 0"):
        item_knn_ranks(toy_rows(), neighbours=0, collator=collate)


def test_expected_ndcg_is_that_of_all_items_by_their_probabilities() -> None:
    random = np.random.default_rng(0)
    logits, shares = random.normal(size=(4, 30)), random.dirichlet(np.ones(30), size=4)
    expected = [
        sum(
            share / math.log2(2 + (line > score).sum())
            for score, share in zip(line, weights, strict=True)
            if (line > score).sum() < 10
        )
        for line, weights in zip(logits, shares, strict=True)
    ]
    assert rankings.expected_ndcg(logits, shares) == pytest.approx(np.mean(expected))
