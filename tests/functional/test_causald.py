"""Equations of CausalD: recorded cases, gradients, properties, edge cases."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.functional import (
    FrontDoorSum,
    causald_loss,
    front_door_effect,
    inverse_propensity_weights,
)

CASES = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "causald.json").read_text())["cases"]
    if "kind" in case["params"]
}
KINDS, AVERAGES = ("bce", "softmax"), ("probability", "logit")
kinds, averages, seeds = st.sampled_from(KINDS), st.sampled_from(AVERAGES), st.integers(0, 1000)


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _close(got: Tensor, recorded: Any, case: dict[str, Any]) -> None:
    torch.testing.assert_close(got.detach(), _tensor(recorded), rtol=case["rtol"], atol=case["atol"])


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _probabilities(logits: Tensor, kind: str) -> Tensor:
    return logits.sigmoid() if kind == "bce" else logits.softmax(-1)


def _labels(kind: str, rows: int, candidates: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "bce":
        return torch.randint(2, (rows, candidates), generator=generator).double()
    return torch.randint(candidates, (rows,), generator=generator)


# ------------------------------------------------------------------------------------------------ recorded cases
def _scores(inputs: dict[str, Any]) -> Tensor:
    if "scores" in inputs:
        return _tensor(inputs["scores"])
    parts = {name: _tensor(inputs[name]) for name in ("mediator", "item_mediator", "bank", "item_direct")}
    mediated = torch.einsum("tbd,tcd->tbc", parts["mediator"], parts["item_mediator"])
    direct = torch.einsum("tkr,tcr->tkc", parts["bank"], parts["item_direct"])
    return mediated[:, :, None] + direct[:, None]


def _effect(case: dict[str, Any]) -> Tensor:
    inputs, params = case["inputs"], case["params"]
    weights = {name: _tensor(inputs[name]) for name in ("teacher_weights", "prior") if name in inputs}
    return front_door_effect(_scores(inputs), average=params["average"], kind=params["kind"], **weights)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "effect_logits" in case["outputs"]])
def test_recorded_effect(name: str) -> None:
    case = CASES[name]
    outputs, effect = case["outputs"], _effect(case)
    _close(effect, outputs["effect_logits"], case)
    if "effect" in outputs:
        _close(_probabilities(effect, case["params"]["kind"]), outputs["effect"], case)
    if "effect_logits_at_mean_history" in outputs:
        _close(effect, outputs["effect_logits_at_mean_history"], case)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "student_logits" in case["inputs"]])
def test_recorded_loss(name: str) -> None:
    case = CASES[name]
    inputs, outputs, params = case["inputs"], case["outputs"], case["params"]
    effect = _tensor(inputs["effect_logits"]) if "effect_logits" in inputs else _effect(case)
    labels = _tensor(inputs["labels"]) if params["kind"] == "bce" else torch.tensor(inputs["labels"])
    student, effect = _tensor(inputs["student_logits"]).requires_grad_(), effect.requires_grad_()
    options = {name: params[name] for name in ("alpha", "temperature", "kind")}
    losses = causald_loss(student, labels, effect, **options)
    for term in ("recommendation", "distillation", "total"):
        _close(losses[term], outputs[f"loss_{term}"], case)
    rows = causald_loss(student, labels, effect, reduction="none", **options)
    _close(rows["total"], outputs["total_per_example"], case)
    gradient = torch.autograd.grad(losses["distillation"], student, retain_graph=True)[0]
    _close(gradient, outputs["grad_distillation_student_logits"], case)
    found = torch.autograd.grad(losses["total"], (student, effect), allow_unused=True)
    _close(found[0], outputs["grad_student_logits"], case)
    assert found[1] is None


# ------------------------------------------------------------------------------------------------ effect
def _naive_effect(scores: Tensor, weights: Tensor, prior: Tensor, average: str, kind: str) -> Tensor:
    """Probabilities, as the equation has them; scores `[T, B, K, C]`, weights `[T, B]`."""
    weights, prior = weights / weights.sum(0), prior / prior.sum()
    values = _probabilities(scores, kind) if average == "probability" else scores
    mean = torch.einsum("tb,k,tbkc->bc", weights, prior, values)
    return mean if average == "probability" else _probabilities(mean, kind)


@settings(max_examples=40, deadline=None)
@given(kind=kinds, average=averages, seed=seeds, by_row=st.booleans(), sizes=st.tuples(*[st.integers(1, 4)] * 4))
def test_effect_is_the_formula(
    kind: str, average: str, seed: int, by_row: bool, sizes: tuple[int, int, int, int]
) -> None:
    teachers, rows, histories, _ = sizes
    scores, prior = 3 * _random(*sizes, seed=seed), _random(histories, seed=seed + 1).exp()
    weights = _random(*((teachers, rows) if by_row else (teachers,)), seed=seed + 2).exp()
    effect = front_door_effect(scores, teacher_weights=weights, prior=prior, average=average, kind=kind)  # type: ignore[arg-type]
    weights = weights if by_row else weights[:, None].expand(teachers, rows)
    torch.testing.assert_close(_probabilities(effect, kind), _naive_effect(scores, weights, prior, average, kind))
    if kind == "softmax":  # log probabilities already
        torch.testing.assert_close(effect.logsumexp(-1), torch.zeros(rows, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(kind=kinds, average=averages, seed=seeds)
def test_order_and_streaming_change_nothing(kind: Any, average: Any, seed: int) -> None:
    scores, weights, prior = _random(3, 4, 5, 6, seed=seed), _random(3, 4, seed=1).exp(), _random(5, seed=2).exp()
    options = {"kind": kind, "average": average}
    whole = front_door_effect(scores, teacher_weights=weights, prior=prior, **options)
    generator = torch.Generator().manual_seed(seed)
    teachers, bank = torch.randperm(3, generator=generator), torch.randperm(5, generator=generator)
    shuffled = scores[teachers][:, :, bank]
    moved = front_door_effect(shuffled, teacher_weights=weights[teachers], prior=prior[bank], **options)
    torch.testing.assert_close(moved, whole)
    one, several = FrontDoorSum(kind, average), FrontDoorSum(kind, average)
    normalised = weights / weights.sum(0)  # by row; the prior need not be
    for teacher in range(3):
        for history in range(5):
            one.add(scores[teacher, :, history], normalised[teacher] * prior[history])
        for block in (slice(0, 2), slice(2, 5)):
            weight = prior[block, None] * normalised[teacher]
            several.add(scores[teacher, :, block].transpose(0, 1), weight)
    torch.testing.assert_close(one.effect(), whole)
    torch.testing.assert_close(several.effect(), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300])
def test_weight_zero_is_no_influence_at_all(kind: Any, average: Any, value: float) -> None:
    scores, options = _random(3, 2, 4, 5), {"kind": kind, "average": average}
    expected = front_door_effect(scores[1:, :, :3], **options)
    scores[0], scores[:, :, 3] = value, value
    weights, prior = torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    scores.requires_grad_()
    effect = front_door_effect(scores, teacher_weights=weights, prior=prior, **options)
    torch.testing.assert_close(effect, expected)
    gradient = torch.autograd.grad((effect * _random(2, 5, seed=1)).sum(), scores)[0]
    assert gradient.isfinite().all() and not gradient[0].any() and not gradient[:, :, 3].any()
    by_row = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # a teacher that one row has and the other has not
    finite = _random(3, 2, 4, 5)
    effect = front_door_effect(finite, teacher_weights=by_row, **options)
    for row, teachers in enumerate(([1, 2], [0, 2])):
        torch.testing.assert_close(effect[row], front_door_effect(finite[teachers], **options)[row])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("average", AVERAGES)
def test_effect_differentiates(kind: Any, average: Any) -> None:
    scores, weights, prior = _random(2, 2, 3, 4).requires_grad_(), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0, 2])
    assert torch.autograd.gradcheck(
        lambda s: front_door_effect(s, teacher_weights=weights, prior=prior, average=average, kind=kind), scores
    )


@settings(max_examples=20, deadline=None)
@given(kind=kinds, seed=seeds)
def test_averaged_logits_are_one_pass_at_the_mean_history(kind: Any, seed: int) -> None:
    """For scores that are linear in the history's representation."""
    mediated, bank, items = _random(2, 3, 1, 6, seed=seed), _random(2, 5, 4, seed=1), _random(2, 6, 4, seed=2)
    prior = _random(5, seed=seed).exp()
    scores = mediated + torch.einsum("tkr,tcr->tkc", bank, items)[:, None]
    mean = torch.einsum("k,tkr->tr", prior / prior.sum(), bank)
    at_mean = mediated[:, :, 0] + torch.einsum("tr,tcr->tc", mean, items)[:, None]
    effect = front_door_effect(scores, prior=prior, average="logit", kind=kind)
    torch.testing.assert_close(effect, front_door_effect(at_mean, average="logit", kind=kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_probability_is_clipped(dtype: torch.dtype) -> None:
    """Where a sigmoid is 1 to rounding, `log(p / (1 - p))` would be infinite."""
    scores = torch.tensor([[60.0, 60.0, -90.0], [60.0, -60.0, -90.0]], dtype=dtype)[:, None]
    torch.testing.assert_close(front_door_effect(scores), torch.tensor([[60.0, 0.0, -90.0]], dtype=dtype))


def test_one_prediction_is_its_own_effect() -> None:
    scores = _random(1, 3, 1, 4)
    for average in AVERAGES:
        torch.testing.assert_close(front_door_effect(scores, average=average), scores[0, :, 0])  # type: ignore[arg-type]
        torch.testing.assert_close(
            front_door_effect(scores, average=average, kind="softmax"),  # type: ignore[arg-type]
            scores[0, :, 0].log_softmax(-1),
        )


def test_candidates_that_all_teachers_mask_stay_masked() -> None:
    scores = _random(2, 3, 4)
    scores[..., 1] = -math.inf
    effect = front_door_effect(scores, kind="softmax")
    torch.testing.assert_close(effect[:, [0, 2, 3]], front_door_effect(scores[..., [0, 2, 3]], kind="softmax"))
    assert (effect[:, 1] == -math.inf).all()
    student = _random(3, 4)
    student[:, 1] = -math.inf
    student.requires_grad_()
    losses = causald_loss(student, torch.tensor([0, 2, 3]), effect, alpha=0.5, temperature=2, kind="softmax")
    assert losses["total"].isfinite() and torch.autograd.grad(losses["total"], student)[0].isfinite().all()


def test_computed_in_at_least_float32() -> None:
    scores = _random(3, 4, 5, 6).bfloat16()
    effect = front_door_effect(scores)
    assert effect.dtype == torch.float32 and torch.equal(effect, front_door_effect(scores.float()))
    assert front_door_effect(_random(3, 4, 5)).dtype == torch.float64
    student = _random(4, 6).half()
    losses = causald_loss(student, _labels("bce", 4, 6), effect, alpha=0.5, temperature=2)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    exact = FrontDoorSum("bce", "logit")  # a weight that float32 would round
    exact.add(_random(2, 3), 0.1)
    exact.add(_random(2, 3, seed=1), 0.9)
    expected = 0.1 * _random(2, 3) + 0.9 * _random(2, 3, seed=1)
    torch.testing.assert_close(exact.effect(), expected, rtol=1e-14, atol=0)


# ------------------------------------------------------------------------------------------------ loss
@settings(max_examples=30, deadline=None)
@given(kind=kinds, seed=seeds, scale=st.sampled_from([0.1, 3.0, 100.0]), dtype=st.sampled_from(["float32", "float64"]))
def test_divergence_is_never_negative_and_zero_at_agreement(kind: Any, seed: int, scale: float, dtype: str) -> None:
    student, effect = (scale * _random(4, 5, seed=seed + one).to(getattr(torch, dtype)) for one in (0, 1))
    labels, options = _labels(kind, 4, 5), {"alpha": 1.0, "temperature": 2.0, "kind": kind, "reduction": "none"}
    assert (causald_loss(student, labels, effect, **options)["distillation"] > -1e-6).all()
    same = student.clone().requires_grad_()
    losses = causald_loss(same, labels, student, **options)
    assert not losses["distillation"].any()
    assert torch.autograd.grad(losses["total"].sum(), same)[0].abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: Any) -> None:
    student, effect, labels = _random(4, 5).requires_grad_(), _random(4, 5, seed=1), _labels(kind, 4, 5)
    options = {"alpha": 0.7, "temperature": 3.0, "kind": kind}
    for term in ("recommendation", "distillation", "total"):
        assert torch.autograd.gradcheck(
            lambda z, term=term: causald_loss(z, labels, effect, **options)[term],  # type: ignore[misc]
            student,
        )
    loss = causald_loss(student, labels, effect, alpha=1, temperature=3, kind=kind)["total"]
    found = torch.autograd.grad(loss, student)[0]
    q, p = (_probabilities(logits.detach() / 3, kind) for logits in (student, effect))
    torch.testing.assert_close(found, 3 * (q - p) / (20 if kind == "bce" else 4))


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_zero_is_the_plain_loss_and_one_the_distillation_alone(kind: Any) -> None:
    student, labels = _random(4, 5).requires_grad_(), _labels(kind, 4, 5)
    plain = F.cross_entropy if kind == "softmax" else F.binary_cross_entropy_with_logits
    broken = torch.full((4, 5), math.nan, dtype=torch.float64)
    total = causald_loss(student, labels, broken, alpha=0, temperature=2, kind=kind)["total"]
    assert torch.equal(total, plain(student, labels))
    assert torch.autograd.grad(total, student)[0].isfinite().all()
    losses = causald_loss(student, labels, _random(4, 5, seed=1), alpha=1, temperature=2, kind=kind)
    assert torch.equal(losses["total"], 4 * losses["distillation"])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_mean(kind: Any) -> None:
    student, effect, labels = _random(4, 5), _random(4, 5, seed=1), _labels(kind, 4, 5)
    options = {"alpha": 0.7, "temperature": 3.0, "kind": kind}
    mean = causald_loss(student, labels, effect, **options)
    rows = causald_loss(student, labels, effect, reduction="none", **options)
    for term, values in rows.items():
        assert values.shape == (4,)
        torch.testing.assert_close(values.mean(), mean[term])


# ------------------------------------------------------------------------------------------------ popularity
def test_weights_against_popularity() -> None:
    counts = torch.tensor([1, 4, 16, 64, 0])
    found = inverse_propensity_weights(counts, power=0.5, clip=4)
    expected = torch.tensor([4.0, 4, 2, 1, 4])  # 8 and infinity are clipped
    torch.testing.assert_close(found, expected / 3)
    assert torch.equal(inverse_propensity_weights(counts, power=0), torch.ones(5))
    assert inverse_propensity_weights(counts.double()).dtype == torch.float64


# ------------------------------------------------------------------------------------------------ refusals
def _wrong_effect(scores: Tensor | None = None, **options: Any) -> Tensor:
    return front_door_effect(_random(2, 3, 4, 5) if scores is None else scores, **options)


def _wrong_loss(student: Tensor | None = None, labels: Tensor | None = None, **options: Any) -> Any:
    student = _random(2, 3) if student is None else student
    labels = torch.tensor([0, 1]) if labels is None else labels
    options = {"alpha": 0.5, "temperature": 1.0, "kind": "softmax"} | options
    return causald_loss(student, labels, _random(2, 3), **options)


def _with_nan(*shape: int) -> Tensor:
    scores = _random(*shape)
    scores.view(-1)[-1] = math.nan
    return scores


def _sum(*parts: Any) -> Any:
    total = FrontDoorSum()
    for part in parts:
        total.add(*part)
    return total.effect()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _wrong_effect(kind="ce"), "kind: found 'ce', allowed are 'bce', 'softmax'"),
        (lambda: _wrong_effect(average="mean"), "average: found 'mean', allowed are 'probability', 'logit'"),
        (lambda: _wrong_effect(_random(2, 3)), r"scores: found shape \(2, 3\)"),
        (lambda: _wrong_effect(_random(0, 3, 4)), r"scores: found shape \(0, 3, 4\)"),
        (lambda: _wrong_effect(_with_nan(2, 3, 4)), "scores: found NaN"),
        (lambda: _wrong_effect(torch.full((2, 3, 4), math.inf), kind="softmax"), "scores: found infinite ones"),
        (lambda: _wrong_effect(teacher_weights=torch.ones(3)), r"teacher_weights: found shape \(3,\)"),
        (lambda: _wrong_effect(teacher_weights=torch.ones(2, 2)), r"allowed are \[2\], \[2, 3\]"),
        (lambda: _wrong_effect(teacher_weights=torch.tensor([1.0, -1])), "teacher_weights: found .*-1.0"),
        (lambda: _wrong_effect(teacher_weights=torch.tensor([1.0, math.nan])), "teacher_weights: found .*nan"),
        (lambda: _wrong_effect(teacher_weights=torch.zeros(2)), "teacher_weights: found weights that are all 0"),
        (lambda: _wrong_effect(teacher_weights=torch.eye(2, 3)), "teacher_weights: found weights that are all 0"),
        (lambda: _wrong_effect(prior=torch.ones(3)), r"prior: found shape \(3,\), allowed are \[4\]"),
        (lambda: _wrong_effect(prior=torch.zeros(4)), "prior: found weights that are all 0"),
        (
            lambda: _wrong_effect(_random(2, 3, 5), prior=torch.ones(4)),
            r"prior: found shape \(4,\), allowed are \[1\]",
        ),
        (lambda: _sum(), "weight: found a row without a weight above 0"),
        (lambda: _sum((_random(2, 3), torch.tensor([0.0, 1.0]))), "weight: found a row without a weight above 0"),
        (lambda: _sum((_random(2, 3), -1.0)), "weight: found -1.0"),
        (lambda: _sum((_random(2, 3), torch.ones(3))), r"weight: found shape \(3,\)"),
        (lambda: _sum((_random(2, 3),), (_random(3, 3),)), r"allowed is what was added before, \[2, 3\]"),
        (lambda: _sum((_random(3),)), r"scores: found shape \(3,\)"),
        (lambda: _wrong_loss(kind="ce"), "kind: found 'ce'"),
        (lambda: _wrong_loss(reduction="sum"), "reduction: found 'sum', allowed are 'mean', 'none'"),
        (lambda: _wrong_loss(alpha=1.1), "alpha: found 1.1, allowed"),
        (lambda: _wrong_loss(alpha=math.nan), "alpha: found nan, allowed"),
        (lambda: _wrong_loss(temperature=0), "temperature: found 0, allowed"),
        (lambda: _wrong_loss(temperature=math.inf), "temperature: found inf, allowed"),
        (lambda: _wrong_loss(_random(2, 4)), r"found shapes \(2, 4\) and \(2, 3\)"),
        (lambda: _wrong_loss(labels=torch.tensor([0, 3])), r"labels: found \[0, 3\], allowed are places in \[0, 3\)"),
        (lambda: _wrong_loss(labels=torch.tensor([0, -100])), r"labels: found \[0, -100\]"),
        (lambda: _wrong_loss(labels=torch.tensor([0.0, 1.0])), "labels: found torch.float32"),
        (lambda: _wrong_loss(labels=torch.tensor([0, 1, 2])), r"labels: found torch.int64 of shape \(3,\)"),
        (lambda: _wrong_loss(kind="bce"), r"labels: found shape \(2,\), allowed is \[2, 3\] for 'bce'"),
        (lambda: inverse_propensity_weights(torch.tensor([1, -1])), "counts: found negative"),
        (lambda: inverse_propensity_weights(torch.tensor([0, 0])), "counts: found negative numbers, none above 0"),
        (lambda: inverse_propensity_weights(torch.ones(2, 2)), r"counts: found shape \(2, 2\)"),
        (lambda: inverse_propensity_weights(torch.ones(2), power=-1), "power: found -1"),
        (lambda: inverse_propensity_weights(torch.ones(2), clip=0.5), "clip: found 0.5"),
    ],
)
def test_wrong_inputs_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
