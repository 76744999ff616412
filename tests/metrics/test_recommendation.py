"""Metrics of rankings: by hand, through a Trainer and through evaluate."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_rows import NUM_ITEMS, ToyModel, collate, toy_rows

from hf_ext.metrics import (
    RANKING_METRIC,
    RankedTargets,
    RankingMetrics,
    rank_targets,
    ranking_report,
    ranks_of_logits,
)


def _ranked(ranks: list[float], count: int = 9, top: list[int] | None = None) -> RankedTargets:
    values = np.array(ranks)
    kept = np.tile(np.array(top or [1, 2, 0]), (len(values), 1))
    return RankedTargets(values, np.full(len(values), count), kept, values - 0.5 * (values > 1))


RANKS = [1.0, 3.0, 2.0, 9.0, 1.0, 4.0, 1.0]  # users 0, 0, 1, 1, 2, 3, 4 of whom 0 and 1 are the head


def test_users_count_once() -> None:
    rows = toy_rows()
    assert rows.users.tolist() == [0, 0, 1, 1, 2, 3, 4]
    found = RankingMetrics(rows, k=3).of(_ranked(RANKS))
    ndcg = [1, 0.5, 1 / math.log2(3), 0, 1, 0, 1]
    users = [0.75, 0.5 / math.log2(3), 1, 0, 1]
    assert found["ndcg@3"] == pytest.approx(np.mean(users)) and found["ndcg@3"] != pytest.approx(np.mean(ndcg))
    assert found["hr@3"] == pytest.approx(np.mean([1, 0.5, 1, 0, 1]))
    assert found["mrr"] == pytest.approx(np.mean([(1 + 1 / 3) / 2, (1 / 2 + 1 / 9) / 2, 1, 1 / 4, 1]))
    area = [1, 1 - 1.5 / 8, 1 - 0.5 / 8, 1 - 7.5 / 8, 1, 1 - 2.5 / 8, 1]
    assert found["auc"] == pytest.approx(np.mean(area))
    of_users = [np.mean(area[:2]), np.mean(area[2:4]), *area[4:]]
    assert found["gauc"] == pytest.approx(np.mean(of_users))
    for name, values in (("ndcg@3", users), ("auc", of_users)):
        head, tail = np.mean(values[:2]), np.mean(values[2:])
        assert found[f"head_{name}"] == pytest.approx(head) and found[f"tail_{name}"] == pytest.approx(tail)
        assert found[f"gap_{name}"] == pytest.approx(head - tail)
        assert found[f"std_{name}"] == pytest.approx(abs(head - tail) / 2)


def test_what_is_recommended() -> None:
    rows = toy_rows()
    found = RankingMetrics(rows, k=2).of(_ranked(RANKS, top=[1, 9, 5]))
    assert found["coverage@2"] == pytest.approx(2 / NUM_ITEMS)
    counts = rows.split.item_counts[1:]
    shares = [np.mean((counts < counts[row - 1]) + 0.5 * (counts == counts[row - 1])) for row in (1, 9)]
    assert found["popularity@2"] == pytest.approx(np.mean(shares))
    fewer = RankingMetrics(rows, k=2).of(_ranked(RANKS, top=[1, 0, 0]))
    assert fewer["popularity@2"] == pytest.approx(shares[0]) and fewer["coverage@2"] == pytest.approx(1 / NUM_ITEMS)


def test_targets_without_rivals_have_no_area() -> None:
    rows = toy_rows()
    ranked = _ranked(RANKS)
    ranked.num_candidates[-1] = 1
    found = RankingMetrics(rows, k=3).of(ranked)
    assert found["auc"] == pytest.approx(np.mean([1, 1 - 1.5 / 8, 1 - 0.5 / 8, 1 - 7.5 / 8, 1, 1 - 2.5 / 8]))
    nobody = RankingMetrics(rows, k=3).of(_ranked([1.0] * 7, count=1))
    assert math.isnan(nobody["gauc"]) and math.isnan(nobody["gap_auc"]) and nobody["ndcg@3"] == 1


def test_groups_may_be_of_another_share() -> None:
    rows = toy_rows()
    assert rows.split.activity.tolist() == [3, 2, 2, 3, 8]
    found = RankingMetrics(rows, k=3, head_fraction=0.2).of(_ranked(RANKS))
    assert found["head_ndcg@3"] == 1  # the last user alone
    none = RankingMetrics(rows, k=3, head_fraction=0).of(_ranked(RANKS))
    assert math.isnan(none["gap_ndcg@3"]) and math.isnan(none["std_ndcg@3"])
    assert none["tail_ndcg@3"] == pytest.approx(none["ndcg@3"])


def test_a_trainers_evaluation_is_the_ranking_alone() -> None:
    """By batches, with -inf where an item is excluded, as a model does that excludes by itself."""
    rows, model = toy_rows(), ToyModel().eval()
    parts = []
    for block in (slice(0, 4), slice(4, 7)):
        batch = collate([rows[index] for index in range(7)[block]])
        with torch.no_grad():
            logits = model(batch["input_ids"]).logits
        for own, excluded, label in zip(logits, batch["exclude_ids"], batch["labels"], strict=True):
            places = excluded[(excluded > 0) & (excluded != label)] - 1
            own[places] = -torch.inf
        parts.append(ranks_of_logits((logits, batch["input_ids"]), batch["labels"], k=3))
    predictions = tuple(torch.cat(values).numpy() for values in zip(*parts, strict=True))
    metrics = RankingMetrics(rows, k=3)
    found = metrics(SimpleNamespace(predictions=predictions, label_ids=rows.targets))  # type: ignore[arg-type]
    assert found == metrics.of(rank_targets(model, rows, k=3, collator=collate))
    assert all(isinstance(value, float) for value in found.values())


def test_a_report_of_plain_scores() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    users, groups = ["a", "a", "b", "b", "c", "d"], [1, 1, 0, 0, 0, 0]
    found = ranking_report(scores, targets, users=users, groups=groups, k=2)
    ranks = np.array([1 + (row > row[target]).sum() for row, target in zip(scores, targets, strict=True)])
    gain = np.where(ranks <= 2, 1 / np.log2(1 + ranks), 0)
    assert found["ndcg@2"] == pytest.approx(np.mean([gain[:2].mean(), gain[2:4].mean(), gain[4], gain[5]]))
    assert found["auc"] == pytest.approx(np.mean(1 - (ranks - 1) / 4))
    assert found["gap_ndcg@2"] == pytest.approx(gain[:2].mean() - np.mean([gain[2:4].mean(), gain[4], gain[5]]))
    alone = ranking_report(scores, targets, k=2)
    assert alone["ndcg@2"] == pytest.approx(gain.mean()) and "gap_ndcg@2" not in alone
    constant = ranking_report(np.zeros((2, 4)), [0, 3], k=3)
    assert constant["hr@3"] == 0 and constant["auc"] == 0.5


def _predicted(rows: Any, **changes: Any) -> Any:
    ranked = replace(_ranked(RANKS), **changes)
    return SimpleNamespace(predictions=tuple(vars(ranked).values()), label_ids=rows.targets)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows: RankingMetrics(rows, k=4).of(_ranked(RANKS)), "k: found 4, allowed are integers <= 3"),
        (lambda rows: RankingMetrics(rows).of(_ranked([1.0])), "ranked: found 1 rows, allowed are 7"),
        (
            lambda rows: RankingMetrics(rows, k=3)(_predicted(rows, ranks=np.array([*RANKS[:6], np.nan]))),
            "scores: found NaN in 1 of 7 rows",
        ),
        (
            lambda rows: RankingMetrics(rows)(SimpleNamespace(predictions=(), label_ids=rows.targets[::-1])),  # type: ignore[arg-type]
            "labels: found 7 that are not the 7 targets of the dataset",
        ),
        (lambda rows: RankingMetrics(rows, head_fraction=2), "head_fraction: found 2"),
        (lambda rows: ranking_report(np.full((1, 2), np.nan), [0]), "scores: found NaN in 1 of 1 rows"),
        (lambda rows: ranking_report(np.zeros((1, 2)), [2]), r"targets: found \[2\], allowed are places in \[0, 2\)"),
        (lambda rows: ranking_report(np.zeros((2, 2)), [1, 1], users=[0]), r"users: found shape \(1,\), allowed is"),
        (
            lambda rows: ranking_report(np.zeros((2, 2)), [1, 1], users=[0, 0], groups=[0, 1]),
            "groups: found a user in two groups",
        ),
    ],
)
def test_wrong_inputs_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(toy_rows())


@pytest.mark.slow
def test_evaluate_loads_the_folder(modules_cache: str) -> None:
    import evaluate

    metric = evaluate.load(RANKING_METRIC, cache_dir=modules_cache)
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(20, 6)), rng.integers(0, 6, 20)
    scores[3, (targets[3] + 1) % 6] = -np.inf
    options: Any = {"users": np.arange(20) // 2, "groups": (np.arange(20) < 6).astype(int), "k": 3}
    found = metric.compute(predictions=scores, references=targets, **options)
    assert found == pytest.approx(ranking_report(scores, targets, **options))
    assert ranking_report(scores, targets)["auc"] == metric.compute(predictions=scores, references=targets)["auc"]
