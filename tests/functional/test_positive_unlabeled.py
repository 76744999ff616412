"""Risks, class priors and calibration of positive-unlabelled learning: recorded cases, properties, edge cases."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.functional import estimate_class_prior, prior_offset, pu_risk

CASES = json.loads((Path(__file__).parents[1] / "golden" / "gpl.json").read_text())["cases"]


def _cases(function: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in CASES if case["params"]["function"] == function]


def _close(got: Tensor | None, recorded: float | list[float], case: dict[str, Any]) -> None:
    assert got is not None
    expected = torch.tensor(recorded, dtype=torch.float64)
    torch.testing.assert_close(got.detach(), expected, rtol=case["rtol"], atol=case["atol"])


def _mask(values: Any) -> Tensor | None:
    return None if values is None else torch.tensor(values)


# ------------------------------------------------------------------------------------------------ recorded cases
@pytest.mark.parametrize("kind", ["nnpu", "upu"])
@pytest.mark.parametrize("loss", ["sigmoid", "logistic"])
@pytest.mark.parametrize("case", _cases("pu_risk"))
def test_recorded_risk(case: dict[str, Any], loss: Any, kind: Any) -> None:
    inputs, recorded = case["inputs"], case["outputs"][f"{kind}_{loss}"]
    scores = torch.tensor(inputs["scores"], dtype=torch.float64, requires_grad=True)
    options = {name: value for name, value in case["params"].items() if name != "function"}
    masks = torch.tensor(inputs["positive_mask"]), _mask(inputs["unlabeled_mask"])
    losses = pu_risk(scores, *masks, loss=loss, kind=kind, **options)
    for name in ("positive", "negative", "total"):
        _close(losses[name], recorded[name], case)
    _close(torch.autograd.grad(losses["total"], scores)[0], recorded["grad_scores"], case)


@pytest.mark.parametrize("case", _cases("estimate_class_prior"))
def test_recorded_prior(case: dict[str, Any]) -> None:
    inputs, outputs = case["inputs"], case["outputs"]
    scores, probabilities = (torch.tensor(inputs[name], dtype=torch.float64) for name in ("scores", "probabilities"))
    masks = torch.tensor(inputs["positive_mask"]), _mask(inputs["unlabeled_mask"])
    options = {name: case["params"][name] for name in ("delta", "gamma")}
    for name, slack in (("bbe", True), ("no_slack", False)):
        found = estimate_class_prior(scores, *masks, slack=slack, **options)
        _close(found["prior"], outputs[name], case)
        _close(found["threshold"], outputs[f"{name}_threshold"], case)
    _close(estimate_class_prior(scores, *masks, **options)["bound"], outputs["bbe_bound"], case)
    found = estimate_class_prior(probabilities, *masks, method="en")
    _close(found["prior"], outputs["en"], case)
    assert found["threshold"] is found["bound"] is None


# ------------------------------------------------------------------------------------------------ risk
def test_risk_of_empty_sets() -> None:
    scores = torch.tensor([1.0, -2.0], requires_grad=True)
    none, both = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    assert pu_risk(scores, none, both, prior=0.3)["total"] == scores.sigmoid().mean()
    only_positives = pu_risk(scores, both, none, prior=0.3)
    assert only_positives["negative"] == 0
    assert only_positives["total"] == only_positives["positive"] == 0.3 * (-scores).sigmoid().mean()
    gradient = torch.autograd.grad(only_positives["total"], scores)[0]
    assert (gradient < 0).all()  # positives are pulled up
    assert pu_risk(scores, none, none, prior=0.3)["total"] == 0


def test_both_risks_agree_where_the_negative_part_is_not_negative() -> None:
    scores, positive = torch.tensor([2.0, 1.0, -1.0, -2.0]), torch.tensor([True, False, False, False])
    one, other = (pu_risk(scores, positive, prior=0.1, kind=kind)["total"] for kind in ("nnpu", "upu"))  # type: ignore[arg-type]
    assert one == other


@pytest.mark.parametrize("loss", ["sigmoid", "logistic"])
def test_risk_of_extreme_scores(loss: Any) -> None:
    scores = torch.tensor([800.0, -800.0, 800.0, -800.0], requires_grad=True)
    positive = torch.tensor([True, True, False, False])
    losses = pu_risk(scores, positive, prior=0.9, loss=loss)
    assert all(value.isfinite() for value in losses.values())
    assert torch.autograd.grad(losses["total"], scores)[0].isfinite().all()


# ------------------------------------------------------------------------------------------------ prior
def _two_groups(prior: float, *, unlabeled: int = 4000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, P and truth of U: positives 3 above the negatives."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(unlabeled, generator=generator) < prior
    is_positive = torch.cat([torch.ones(1000, dtype=torch.bool), truth])
    scores = torch.randn(len(is_positive), generator=generator) + 3 * is_positive
    known = torch.arange(len(scores)) < 1000
    return scores, known, truth


@pytest.mark.parametrize("prior", [0.1, 0.4, 0.8])
def test_best_bin_finds_the_prior(prior: float) -> None:
    scores, known, truth = _two_groups(prior)
    found = estimate_class_prior(scores, known)["prior"]
    assert float(found or 0) == pytest.approx(float(truth.float().mean()), abs=0.05)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), prior=st.floats(0.05, 0.95))
def test_best_bin_needs_the_order_alone(seed: int, prior: float) -> None:
    scores, known, _ = _two_groups(prior, unlabeled=300, seed=seed)
    scores = scores.double()
    one, other = (estimate_class_prior(values, known) for values in (scores, scores**3 + 5 * scores - 7))
    assert one["prior"] == other["prior"]
    assert one["bound"] == other["bound"]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), slack=st.booleans())
def test_best_bin_is_the_least_over_all_cuts(seed: int, slack: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(8, (30,), generator=generator).double()
    known = torch.arange(30) < 9
    extra = 1.01 * sum(math.sqrt(math.log(40) / (2 * rows)) for rows in (9, 21)) if slack else 0.0
    shares = [
        ((scores[~known] >= cut).double().mean(), (scores[known] >= cut).double().mean())
        for cut in scores.unique()
        if (scores[known] >= cut).any()
    ]
    bounds = [float((q_u + extra) / q_p) for q_u, q_p in shares]
    found = estimate_class_prior(scores, known, slack=slack)
    assert float(found["bound"] or 0) == pytest.approx(min(bounds))
    assert 0 <= float(found["prior"] or 0) <= 1


def test_held_out_positives_tell_elkan_and_noto_of_the_rest() -> None:
    """200 positives of whom 50 are labelled and 10 held out: g is 1/4 for each, and 140 are left among 300."""
    g = torch.cat([torch.full((200,), 0.25), torch.zeros(160)])
    labeled, held_out = torch.zeros(2, 360, dtype=torch.bool)
    labeled[:50], held_out[50:60] = True, True
    unlabeled = ~labeled & ~held_out
    found = estimate_class_prior(g, held_out, unlabeled, method="en", labeled_mask=labeled)["prior"]
    assert float(found or 0) == pytest.approx(140 / 300)
    nothing = estimate_class_prior(torch.zeros(360), held_out, unlabeled, method="en", labeled_mask=labeled)["prior"]
    assert nothing == 1  # nobody is thought labelled: anyone may be positive


# ------------------------------------------------------------------------------------------------ calibration
@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.floats(-30, 30), min_size=1, max_size=20),
    prior=st.floats(0.01, 0.99),
)
def test_offset_gives_the_prior(scores: list[float], prior: float) -> None:
    values = torch.tensor(scores, dtype=torch.float64)
    offset = prior_offset(values, prior=prior)
    assert offset.shape == ()
    torch.testing.assert_close((values + offset).sigmoid().mean(), torch.tensor(prior, dtype=torch.float64))


def test_offset_of_extreme_scores() -> None:
    scores = torch.tensor([800.0, -800.0, -800.0, -800.0])
    offset = prior_offset(scores, prior=torch.tensor(0.25))
    torch.testing.assert_close((scores + offset).sigmoid().mean(), torch.tensor(0.25))
    assert prior_offset(scores.bfloat16(), prior=0.5).dtype == torch.float32


# ------------------------------------------------------------------------------------------------ refusals
_SOME, _NONE = torch.tensor([True, False]), torch.tensor([False, False])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: pu_risk(s, _SOME, prior=-0.1), "prior: found -0.1"),
        (lambda s: pu_risk(s, _SOME, prior=0.1, loss="hinge"), "loss: found 'hinge'"),  # type: ignore[arg-type]
        (lambda s: pu_risk(s, _SOME, prior=0.1, kind="pu"), "kind: found 'pu'"),  # type: ignore[arg-type]
        (lambda s: estimate_class_prior(s, _NONE), "positive_mask: found no rows"),
        (lambda s: estimate_class_prior(s, _SOME, _NONE), "unlabeled_mask: found no rows"),
        (lambda s: estimate_class_prior(s * math.nan, _SOME), "scores: found NaN"),
        (lambda s: estimate_class_prior(s, _SOME, method="en"), "scores: found numbers that are no probabilities"),
        (lambda s: estimate_class_prior(s, _SOME, method="km"), "method: found 'km'"),  # type: ignore[arg-type]
        (lambda s: estimate_class_prior(s, _SOME, delta=0), "delta: found 0"),
        (lambda s: prior_offset(s, prior=1.0), "prior: found 1.0"),
        (lambda s: prior_offset(s[:0], prior=0.5), "scores: found none"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.tensor([2.0, 3.0]))
