"""The paired comparison: intervals, their sign, what they cover."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_ext._reports import spread
from hf_ext.studies.statistics import Difference, paired_difference

PAIRS = st.lists(st.tuples(*[st.floats(-100, 100)] * 2), min_size=2, max_size=8)


def _ends(found: Difference) -> tuple[float, float, float]:
    return found.mean, found.low, found.high


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("pairs", [2, 3, 10])
def test_interval_is_that_of_the_paired_t_test(pairs: int, confidence: float) -> None:
    method, baseline = np.random.default_rng(pairs).normal(size=(2, pairs))
    expected = stats.ttest_rel(method, baseline).confidence_interval(confidence)
    found = paired_difference(method, baseline, confidence=confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(method) - np.mean(baseline))
    assert found.pairs == pairs


def test_the_interval_is_one_of_95_percent_by_default() -> None:
    values = [0.7, 0.8, 0.75], [0.6, 0.65, 0.7]
    assert paired_difference(*values) == paired_difference(*values, confidence=0.95)


def test_what_the_seeds_share_does_not_count() -> None:
    shared = np.array([0.0, 10.0, -20.0, 5.0])
    found = paired_difference(shared + np.array([0.9, 1.0, 1.1, 1.0]), shared)
    assert _ends(found) == pytest.approx((1.0, 1.0 - 0.1299, 1.0 + 0.1299), abs=1e-4)


def test_one_pair_has_no_interval() -> None:
    found = paired_difference([2.0], [0.5])
    assert (found.mean, found.pairs, found.verdict) == (1.5, 1, "not shown")
    assert math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(("method", "baseline"), [([1.0], [1.0, 2.0]), ([], []), ([], [1.0])])
def test_values_without_a_partner(method: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError, match=f"found {len(method)} values and {len(baseline)}"):
        paired_difference(method, baseline)


def test_a_smaller_loss_is_better() -> None:
    found = paired_difference([1.0, 1.1, 0.9], [2.0, 2.2, 2.1], greater_is_better=False)
    assert found.verdict == "shown"
    assert found.mean == pytest.approx(1.1)
    assert found.low < found.mean < found.high
    assert paired_difference([1.0, 1.1, 0.9], [2.0, 2.2, 2.1]).verdict == "reversed"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, "shown"),
        (-0.1, 0.3, "not shown"),
        (0.0, 0.3, "not shown"),
        (-0.3, 0.0, "not shown"),
        (-0.3, -0.1, "reversed"),
        (math.nan, math.nan, "not shown"),
    ],
)
def test_verdicts(low: float, high: float, verdict: str) -> None:
    assert Difference(0.1, low, high, 5).verdict == verdict


def test_equal_scores_show_nothing() -> None:
    assert paired_difference([0.5, 0.7], [0.5, 0.7]).verdict == "not shown"


@pytest.mark.parametrize(("pairs", "confidence"), [(2, 0.95), (5, 0.95), (5, 0.8)])
def test_intervals_cover_the_true_difference_as_often_as_they_promise(pairs: int, confidence: float) -> None:
    truth, draws = 0.3, 2000
    samples = np.random.default_rng(0).normal(size=(draws, 2, pairs))
    found = [paired_difference(method + truth, base, confidence=confidence) for method, base in samples]
    covered = np.mean([difference.low <= truth <= difference.high for difference in found])
    assert abs(covered - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / draws)


@settings(deadline=None)
@given(PAIRS, st.floats(-100, 100))
def test_a_shift_of_both_changes_nothing(pairs: list[tuple[float, float]], shift: float) -> None:
    method, baseline = np.array(pairs).T
    shifted = paired_difference(method + shift, baseline + shift)
    assert _ends(shifted) == pytest.approx(_ends(paired_difference(method, baseline)), abs=1e-9)


@settings(deadline=None)
@given(PAIRS)
def test_swapping_the_systems_negates(pairs: list[tuple[float, float]]) -> None:
    method, baseline = np.array(pairs).T
    found, swapped = paired_difference(method, baseline), paired_difference(baseline, method)
    assert _ends(swapped) == pytest.approx((-found.mean, -found.high, -found.low), abs=1e-9)
    assert swapped == paired_difference(method, baseline, greater_is_better=False)


def test_spread() -> None:
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert spread([1.5]) == (1.5, None)
