"""Metrics of positive and unlabelled rows: by hand, against sklearn, and an interval against drawing rows."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from hf_ext.functional import estimate_class_prior
from hf_ext.metrics import PU_METRIC, PUMetrics, prior_interval, reliability_curve
from hf_ext.metrics.positive_unlabeled import _best_bins, _draws, _elkan_noto

LOGITS = np.array([2.0, 1.0, 0.5, -0.5, -1.0, -2.0, 3.0, -3.0, 9.0, -9.0])
ROLES = np.array([1, 0, 1, 1, 0, 0, 2, 2, -100, -1])  # U: the first six, whose truth is known, and the last
KNOWN = slice(0, 6)


def called(metrics: Any, logits: Any = LOGITS, roles: Any = ROLES) -> dict[str, float]:
    return metrics(SimpleNamespace(predictions=logits, label_ids=roles))


def test_where_the_truth_is_known() -> None:
    truth = ROLES[KNOWN] == 1
    found = called(PUMetrics())
    assert found["f1"] == pytest.approx(f1_score(truth, LOGITS[KNOWN] >= 0)) == pytest.approx(2 / 3)
    assert found["auc"] == pytest.approx(roc_auc_score(truth, LOGITS[KNOWN])) == pytest.approx(7 / 9)
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, LOGITS[KNOWN]))
    assert found["calibration_error"] == pytest.approx(abs(expit(LOGITS[KNOWN]) - truth).mean())
    assert "f1_at_prior" not in found and "prior_error" not in found


def test_an_offset_moves_the_cut_and_no_ranking() -> None:
    before, found = called(PUMetrics()), called(PUMetrics(offset=0.6))
    truth = ROLES[KNOWN] == 1
    assert found["f1"] == pytest.approx(f1_score(truth, LOGITS[KNOWN] >= -0.6)) != before["f1"]
    assert found["calibration_error"] == pytest.approx(abs(expit(LOGITS[KNOWN] + 0.6) - truth).mean())
    for name in ("auc", "average_precision", "held_out_auc"):
        assert found[name] == before[name]


def test_the_cut_of_a_prior_is_of_all_unlabelled_rows() -> None:
    """Two of seven are chosen, the first two; those that are held out or known are none of them."""
    found = called(PUMetrics(prior=2 / 7))
    assert found["f1_at_prior"] == pytest.approx(2 * 1 / (2 + 3))
    assert found["prior_error"] == pytest.approx(0.5 - 2 / 7)  # three of six
    assert called(PUMetrics(prior=0.25, true_prior=0.3))["prior_error"] == pytest.approx(0.05)


def test_where_only_positives_are_known() -> None:
    roles = np.where(np.isin(ROLES, (0, 1)), -1, ROLES)
    found = called(PUMetrics(prior=0.4, true_prior=0.3), roles=roles)
    assert set(found) == {"held_out_auc", "held_out_recall", "lee_liu"}
    assert found["held_out_recall"] == 0.5
    assert found["lee_liu"] == pytest.approx(0.5**2 / (3 / 7))
    assert found["held_out_auc"] == pytest.approx((7 + 1) / 14)
    everything = called(PUMetrics(offset=100.0), roles=roles)
    assert everything["held_out_recall"] == everything["lee_liu"] == 1
    nothing = called(PUMetrics(offset=-100.0), roles=roles)
    assert nothing["held_out_recall"] == nothing["lee_liu"] == 0


def test_nothing_held_out_and_one_class() -> None:
    roles = np.where(ROLES == 2, -100, ROLES)
    assert set(called(PUMetrics(), roles=roles)) == {"f1", "auc", "average_precision", "calibration_error"}
    negatives = called(PUMetrics(prior=0.0), roles=np.zeros(10, dtype=int))
    assert math.isnan(negatives["auc"]) and math.isnan(negatives["average_precision"])
    assert negatives["f1"] == negatives["f1_at_prior"] == negatives["prior_error"] == 0
    assert called(PUMetrics(), roles=np.full(10, -100)) == {}


def test_large_logits_and_a_tuple_of_outputs() -> None:
    found = called(PUMetrics(prior=0.5), (LOGITS * 1e4, "features"))
    assert found["auc"] == pytest.approx(7 / 9) and found["calibration_error"] == pytest.approx(2 / 6)
    broken = np.where(ROLES == -100, np.nan, LOGITS)
    assert called(PUMetrics(), broken) == called(PUMetrics())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PUMetrics(prior=1.5), r"prior: found 1\.5, allowed are None, numbers in \[0, 1\]"),
        (lambda: PUMetrics(true_prior=float("nan")), r"true_prior: found nan"),
        (lambda: PUMetrics(offset=float("inf")), r"offset: found inf, allowed are finite numbers"),
        (lambda: called(PUMetrics(), LOGITS[:, None]), r"logits: found shape \(10, 1\)"),
        (lambda: called(PUMetrics(), LOGITS[:5]), r"logits: found shape \(5,\) with roles of \(10,\)"),
        (lambda: called(PUMetrics(), roles=ROLES + 1), r"roles: found \[-99, 3\], allowed are 1, 0, -1, 2, -100"),
        (lambda: called(PUMetrics(), np.full(10, np.nan)), r"logits: found NaN in 9 of 10 rows"),
        (lambda: reliability_curve([0.5, 1.5], [0, 1]), r"probabilities: found 0\.5 to 1\.5, allowed are numbers in"),
        (lambda: reliability_curve([], []), r"probabilities: found shape \(0,\)"),
        (lambda: reliability_curve([0.5], [2]), r"labels: found \[2\], allowed are 0 and 1"),
        (lambda: reliability_curve([0.5], [1], bins=0), r"bins: found 0, allowed are integers >= 1"),
        (lambda: prior_interval([1.0, 2.0], [False, False]), r"positive_mask: found no rows"),
        (lambda: prior_interval([1.0, 2.0], [True, True]), r"unlabeled_mask: found no rows"),
        (lambda: prior_interval([1.0, np.nan], [True, False]), r"unlabeled_mask: found NaN among the scores"),
        (lambda: prior_interval([1.0, 2.0], [True]), r"scores: found shape \(2,\) with masks of \(1,\), allowed"),
        (lambda: prior_interval([1.0, 2.0], [True, False], level=1.0), r"level: found 1\.0, allowed are numbers"),
        (
            lambda: prior_interval([1.0, 2.0], [True, False], method="tm"),
            r"method: found 'tm', allowed are 'bbe', 'en'",
        ),  # type: ignore[arg-type]
        (lambda: prior_interval([1.0, 2.0], [True, False], replicates=0), r"replicates: found 0"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_reliability_curve_by_hand() -> None:
    probabilities = [0.9, 0.1, 0.2, 0.8, 0.3, 0.7]
    curve = reliability_curve(probabilities, [1, 0, 1, 0, 0, 1], bins=3)
    assert curve["predicted"] == pytest.approx([0.15, 0.5, 0.85])
    assert curve["observed"] == pytest.approx([0.5, 0.5, 0.5])
    assert curve["rows"] == [2, 2, 2]


def test_equal_probabilities_share_a_bin_in_any_order() -> None:
    values, truth = np.repeat([0.2, 0.6], [7, 3]), np.arange(10) % 2
    curve = reliability_curve(values, truth, bins=5)
    assert curve["rows"] == [7, 3] and curve["predicted"] == pytest.approx([0.2, 0.6])
    order = np.random.default_rng(0).permutation(10)
    assert reliability_curve(values[order], truth[order], bins=5)["observed"] == pytest.approx(curve["observed"])


def test_evaluate_loads_the_folder(modules_cache: str) -> None:
    import evaluate

    metric = evaluate.load(PU_METRIC, cache_dir=modules_cache)
    found = metric.compute(predictions=LOGITS, references=ROLES, prior=0.4, offset=0.6)
    assert found == pytest.approx(PUMetrics(prior=0.4, offset=0.6).of(LOGITS, ROLES))
    assert metric.compute(predictions=LOGITS, references=ROLES) == pytest.approx(PUMetrics().of(LOGITS, ROLES))


# ------------------------------------------------------------------------------------------------- the interval
def _rows(seed: int, positives: int = 40, unlabelled: int = 300, hidden: float = 0.3, ties: bool = False) -> Any:
    """Scores of a classifier that is good and not perfect, and the mask of known positives."""
    generator = np.random.default_rng(seed)
    truth = np.concatenate([np.ones(positives, bool), generator.random(unlabelled) < hidden])
    scores = generator.normal(size=len(truth)) + 2.5 * truth
    return np.round(scores, 0 if ties else 8), np.arange(len(truth)) < positives


def _estimate(scores: np.ndarray, positive: np.ndarray, method: Any) -> float:
    return float(estimate_class_prior(torch.from_numpy(scores), torch.from_numpy(positive), method=method)["prior"])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", ["bbe", "en"])
def test_every_draw_is_what_the_equation_says_of_its_rows(method: str, ties: bool) -> None:
    scores, positive = _rows(0, ties=ties)
    scores = expit(scores - 2) if method == "en" else scores
    known, others = np.sort(scores[positive])[::-1], scores[~positive]
    ((drawn, between),) = _draws(known, others, 20, np.random.default_rng(1))
    found = _best_bins(known, drawn, between) if method == "bbe" else _elkan_noto(known, drawn, between, 40, 40)
    # rows between two positives are alike to the estimate: any of these stand for them
    edges = np.concatenate([[np.inf], known, [-np.inf]])
    for prior, counts, cells in zip(found, drawn, between, strict=True):
        own = np.repeat(known, counts)
        stand_ins = np.repeat(np.maximum(edges[1:], known.min() - 1), cells)
        joined = np.concatenate([own, stand_ins])
        assert prior == pytest.approx(_estimate(joined, np.arange(len(joined)) < len(own), method), abs=1e-6)


@pytest.mark.parametrize("method", ["bbe", "en"])
def test_rows_as_they_are_have_the_estimate(method: str) -> None:
    scores, positive = _rows(2)
    scores = expit(scores - 2) if method == "en" else scores
    known, others = np.sort(scores[positive])[::-1], scores[~positive]
    at_least = (others[:, None] >= known).sum(0)
    between = np.diff(at_least, prepend=0, append=len(others))[None]
    ones = np.ones((1, len(known)), dtype=np.int64)
    (found,) = _best_bins(known, ones, between) if method == "bbe" else _elkan_noto(known, ones, between, 40, 40)
    assert found == pytest.approx(_estimate(scores, positive, method), abs=1e-6)


def test_the_interval_is_that_of_drawing_rows() -> None:
    scores, positive = _rows(3)
    low, high = prior_interval(scores, positive, replicates=2000)
    generator = np.random.default_rng(0)
    known, others = scores[positive], scores[~positive]
    slow = []
    for _ in range(1000):
        drawn = generator.choice(known, len(known)), generator.choice(others, len(others))
        slow.append(_estimate(np.concatenate(drawn), positive, "bbe"))
    assert (low, high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.02)
    assert low < _estimate(scores, positive, "bbe") < high and high - low > 0.05


def test_the_interval_is_of_the_seed_and_narrows() -> None:
    scores, positive = _rows(4)
    found = prior_interval(scores, positive)
    assert found == prior_interval(scores, positive, seed=0) != prior_interval(scores, positive, seed=1)
    low, high = prior_interval(scores, positive, level=0.5)
    assert found[0] < low < high < found[1]
    more = prior_interval(*_rows(4, positives=2000, unlabelled=15000))
    assert more[1] - more[0] < (found[1] - found[0]) / 2


def test_parts_of_the_draws_make_no_difference_in_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: the draws come a few at a time."""
    known, others = np.arange(5.0)[::-1], np.arange(50.0) / 10
    monkeypatch.setattr("hf_ext.metrics.positive_unlabeled._LARGEST", 18)
    parts = list(_draws(known, others, 7, np.random.default_rng(0)))
    assert [len(drawn) for drawn, _ in parts] == [3, 3, 1]
    for drawn, between in parts:
        assert (drawn.sum(1) == 5).all() and (between.sum(1) == 50).all()


def test_other_masks_leave_rows_out() -> None:
    scores, positive = _rows(5)
    further = np.concatenate([scores, np.full(500, 9.0)])
    masks = np.append(positive, np.zeros(500, bool)), np.append(~positive, np.zeros(500, bool))
    assert prior_interval(further, *masks) == prior_interval(scores, positive)


def test_positives_that_were_held_out_of_those_labelled() -> None:
    """Each estimate of Elkan and Noto is of all that is called labelled, less what is known."""
    scores, held_out = _rows(6)
    scores = expit(scores - 3)
    further = np.concatenate([scores, np.full(100, 0.9)])
    masks = [np.append(mask, np.full(100, added)) for mask, added in ((held_out, False), (~held_out, False))]
    labelled = np.arange(len(further)) >= len(scores)
    low, high = prior_interval(further, *masks, method="en", labeled_mask=labelled)
    found = estimate_class_prior(
        *map(torch.from_numpy, (further, *masks)), method="en", labeled_mask=torch.from_numpy(labelled)
    )
    assert low < float(found["prior"]) < high  # type: ignore[arg-type]
    assert (low, high) != prior_interval(further, *masks, method="en")


def test_an_only_positive() -> None:
    low, high = prior_interval([3.0, 2.0, 1.0, 4.0], [True, False, False, False], method="bbe")
    assert 0 <= low <= high <= 1
