"""Ranks, their metrics and groups of users: recorded cases, properties, edge cases."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.functional import group_heterogeneity, ranking_metrics, target_ranks, user_groups

CASES = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "causald.json").read_text())["cases"]
    if "ties" in case["params"]
}
TIES = ("worst", "mean", "best")
ties, seeds = st.sampled_from(TIES), st.integers(0, 1000)


def _tensor(values: Any) -> Tensor:
    """Recorded numbers, in which NaN is a string."""
    return torch.tensor([float(v) for v in values] if isinstance(values, list) else float(values), dtype=torch.float64)


def _scores(seed: int, rows: int = 5, candidates: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with many ties, targets, and candidates that are none."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(4, (rows, candidates), generator=generator).double()
    exclude = torch.rand(rows, candidates, generator=generator) < 0.3
    return scores, torch.randint(candidates, (rows,), generator=generator), exclude


# ------------------------------------------------------------------------------------------------ recorded cases
@pytest.mark.parametrize("name", CASES)
def test_recorded(name: str) -> None:
    case = CASES[name]
    inputs, outputs, params = case["inputs"], case["outputs"], case["params"]
    scores = torch.tensor(inputs["scores"], dtype=torch.float64)
    exclude = torch.tensor(inputs["exclude"], dtype=torch.bool)
    ranks = target_ranks(scores, torch.tensor(inputs["targets"]), exclude=exclude, ties=params["ties"])
    torch.testing.assert_close(ranks, _tensor(outputs["ranks"]))
    metrics = ranking_metrics(ranks, torch.tensor(outputs["num_candidates"]), k=params["k"])
    for key, values in metrics.items():
        torch.testing.assert_close(values, _tensor(outputs[key]), equal_nan=True)
    groups = user_groups(torch.tensor(inputs["activity"]), head_fraction=params["head_fraction"])
    assert groups.tolist() == outputs["groups"]
    report = group_heterogeneity(metrics[params["metric"]], groups, num_groups=params["num_groups"])
    for key, recorded in outputs["heterogeneity"].items():
        torch.testing.assert_close(report[key].double(), _tensor(recorded), equal_nan=True)


# ------------------------------------------------------------------------------------------------ ranks
@settings(max_examples=40, deadline=None)
@given(seed=seeds, how=ties)
def test_ranks_are_those_of_sorted_scores(seed: int, how: Any) -> None:
    scores, targets, exclude = _scores(seed)
    found = target_ranks(scores, targets, exclude=exclude, ties=how)
    for row, target in enumerate(targets.tolist()):
        own, rest = scores[row, target], [c for c in range(7) if c != target and not exclude[row, c]]
        places = [
            1 + sorted([*scores[row, rest].tolist(), float(own)], reverse=True).index(float(own)),
            len(rest) + 1 - sorted([*scores[row, rest].tolist(), float(own)]).index(float(own)),
        ]
        assert found[row] == {"best": places[0], "worst": places[1], "mean": sum(places) / 2}[how]


@settings(max_examples=30, deadline=None)
@given(seed=seeds, how=ties)
def test_ranks_see_order_alone(seed: int, how: Any) -> None:
    scores, targets, exclude = _scores(seed)
    found = target_ranks(scores, targets, exclude=exclude, ties=how)
    monotone = 3 * scores.exp() - 100
    assert torch.equal(target_ranks(monotone, targets, exclude=exclude, ties=how), found)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    moved = target_ranks(scores[:, order], order.argsort()[targets], exclude=exclude[:, order], ties=how)
    assert torch.equal(moved, found)
    masked = scores.masked_fill(exclude, -math.inf)
    masked[torch.arange(5), targets] = scores[torch.arange(5), targets]
    assert torch.equal(target_ranks(masked, targets, ties=how), found)


def test_a_constant_scorer_is_not_perfect() -> None:
    scores, targets = torch.zeros(2, 9), torch.tensor([0, 8])
    assert target_ranks(scores, targets).tolist() == [9, 9]
    assert target_ranks(scores, targets, ties="mean").tolist() == [5, 5]
    assert target_ranks(scores, targets, ties="best").tolist() == [1, 1]
    assert ranking_metrics(target_ranks(scores, targets, ties="mean"), 9)["auc"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.int64, torch.float32), (torch.float64, torch.float64)],
)
def test_ranks_of_any_dtype(dtype: torch.dtype, expected: torch.dtype) -> None:
    scores = torch.arange(600).to(dtype)[None]
    ranks = target_ranks(scores, torch.tensor([0]))
    assert ranks.dtype == expected and ranks == 600  # bfloat16 itself has no 599


# ------------------------------------------------------------------------------------------------ metrics
@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_area_is_the_share_of_pairs_in_order(seed: int) -> None:
    scores, targets, exclude = _scores(seed)
    exclude[torch.arange(5), targets] = False
    count = (~exclude).sum(1)
    area = ranking_metrics(target_ranks(scores, targets, exclude=exclude, ties="mean"), count)["auc"]
    for row, target in enumerate(targets.tolist()):
        rest = scores[row, [c for c in range(7) if c != target and not exclude[row, c]]]
        pairs = (scores[row, target] > rest).double() + 0.5 * (scores[row, target] == rest)
        torch.testing.assert_close(area[row], pairs.mean(), equal_nan=True)


def test_metrics_by_hand() -> None:
    found = ranking_metrics(torch.tensor([1.0, 3.0, 4.0, 2.5]), 4, k=3)
    assert found["hr"].tolist() == [1, 1, 0, 1]
    assert found["ndcg"].tolist() == pytest.approx([1, 0.5, 0, 1 / math.log2(3.5)])
    assert found["mrr"].tolist() == pytest.approx([1, 1 / 3, 1 / 4, 0.4])
    assert found["auc"].tolist() == pytest.approx([1, 1 / 3, 0, 0.5])
    assert ranking_metrics(torch.ones(2), torch.tensor([1, 2]))["auc"].isnan().tolist() == [True, False]


# ------------------------------------------------------------------------------------------------ groups
@settings(max_examples=60, deadline=None)
@given(activity=st.lists(st.integers(0, 6), max_size=12), share=st.floats(0, 1))
def test_equal_users_stay_together_and_the_head_keeps_to_its_share(activity: list[int], share: float) -> None:
    counts = torch.tensor(activity, dtype=torch.int64)
    groups = user_groups(counts, head_fraction=share)
    head, tail = counts[groups == 1], counts[groups == 0]
    assert not len(head) or not len(tail) or head.min() > tail.max()
    assert len(head) <= share * len(counts) + 1e-9
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(0))
    assert torch.equal(user_groups(counts[order], head_fraction=share), groups[order])
    if len(set(activity)) == len(activity):
        assert len(head) == math.floor(share * len(counts) + 1e-9)


def test_shares_of_users() -> None:
    assert user_groups(torch.arange(100), head_fraction=0.29).sum() == 29  # 0.29 * 100 is 28.999999999999996
    assert not user_groups(torch.ones(10)).any()
    assert user_groups(torch.ones(10), head_fraction=1).all()
    assert not user_groups(torch.arange(10), head_fraction=0).any()
    assert user_groups(torch.tensor([5, 5, 1, 1, 1]), head_fraction=0.2).tolist() == [0] * 5
    assert user_groups(torch.zeros(0)).shape == (0,)


def test_heterogeneity_by_hand() -> None:
    metric, groups = torch.tensor([1.0, 0.5, math.nan, 0.0, 0.25]), torch.tensor([2, 2, 0, 0, 0])
    found = group_heterogeneity(metric, groups, num_groups=3)
    assert found["count"].tolist() == [2, 0, 2] and found["count"].dtype == torch.int64
    assert found["mean"][[0, 2]].tolist() == [0.125, 0.75] and found["mean"][1].isnan()
    assert found["overall"] == 0.4375 and found["gap"] == 0.625
    assert found["std"] == pytest.approx(0.3125)
    lonely = group_heterogeneity(metric, torch.full((5,), 1))
    assert lonely["gap"].isnan() and lonely["std"].isnan() and lonely["mean"][1] == 0.4375
    nobody = group_heterogeneity(torch.full((2,), math.nan), torch.tensor([0, 1]))
    assert all(nobody[name].isnan().all() for name in ("mean", "overall", "gap", "std"))


# ------------------------------------------------------------------------------------------------ refusals
def _with_nan() -> Tensor:
    return torch.tensor([[0.0, math.nan]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: target_ranks(_with_nan(), torch.tensor([0])), "scores: found NaN"),
        (
            lambda: target_ranks(torch.zeros(2, 3), torch.tensor([0, 3])),
            r"targets: found \[0, 3\], allowed are places",
        ),
        (lambda: target_ranks(torch.zeros(2, 3), torch.tensor([0, -1])), r"targets: found \[0, -1\]"),
        (lambda: target_ranks(torch.zeros(2, 3), torch.tensor([0])), r"targets: found torch.int64 of shape \(1,\)"),
        (lambda: target_ranks(torch.zeros(1, 3), torch.tensor([0.0])), "targets: found torch.float32"),
        (lambda: target_ranks(torch.zeros(3), torch.tensor([0])), r"scores: found shape \(3,\)"),
        (
            lambda: target_ranks(torch.zeros(1, 3), torch.tensor([0]), exclude=torch.zeros(1, 2, dtype=torch.bool)),
            "exclude: found torch.bool of shape",
        ),
        (
            lambda: target_ranks(torch.zeros(1, 3), torch.tensor([0]), exclude=torch.zeros(1, 3)),
            "exclude: found torch.float32",
        ),
        (
            lambda: target_ranks(torch.zeros(1, 3), torch.tensor([0]), ties="first"),  # type: ignore[arg-type]
            "ties: found 'first', allowed are 'worst', 'mean', 'best'",
        ),
        (lambda: ranking_metrics(torch.tensor([1.0, math.nan]), 3), "ranks: found ranks that are NaN or out"),
        (lambda: ranking_metrics(torch.tensor([0.0]), 3), "ranks: found"),
        (lambda: ranking_metrics(torch.tensor([4.0]), 3), "ranks: found"),
        (lambda: ranking_metrics(torch.tensor([1.0]), 3, k=0), "k: found 0"),
        (lambda: ranking_metrics(torch.tensor([1.0]), torch.tensor([3, 3])), "ranks, num_candidates: found shapes"),
        (lambda: user_groups(torch.ones(3), head_fraction=1.5), "head_fraction: found 1.5"),
        (lambda: user_groups(torch.tensor([1.0, math.nan])), "activity: found NaN"),
        (lambda: user_groups(torch.ones(2, 2)), r"activity: found NaN or shape \(2, 2\)"),
        (lambda: group_heterogeneity(torch.ones(2), torch.tensor([0, 2])), r"groups: found \[0, 2\], allowed"),
        (lambda: group_heterogeneity(torch.ones(2), torch.tensor([0])), "metric_per_user, groups: found shapes"),
        (lambda: group_heterogeneity(torch.ones(1), torch.tensor([0.0])), "metric_per_user, groups: found"),
        (lambda: group_heterogeneity(torch.ones(1), torch.tensor([0]), num_groups=0), "num_groups: found 0"),
    ],
)
def test_wrong_inputs_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
