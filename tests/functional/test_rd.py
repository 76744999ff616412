"""Equations of RD: recorded cases, gradients, properties, edge cases."""

import itertools
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

from hf_ext.functional import cka_loss, distillation_kl, linear_cka, rd_losses, rd_losses_of_logits

CASES = {
    case["name"]: case for case in json.loads((Path(__file__).parents[1] / "golden" / "rd.json").read_text())["cases"]
}
TOTALS = [name for name, case in CASES.items() if "loss_total" in case["outputs"]]


def _inputs(case: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.tensor(values)
        if name == "labels"
        else torch.tensor(values, dtype=torch.float64, requires_grad=True)
        for name, values in case["inputs"].items()
    }


def _close(got: Any, recorded: Any, case: dict[str, Any]) -> None:
    expected = torch.tensor(recorded, dtype=torch.float64)
    got = torch.as_tensor(got).detach().double()
    torch.testing.assert_close(got, expected, rtol=case.get("rtol", 1e-6), atol=case.get("atol", 1e-8))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ recorded cases
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("debiased", [False, True])
def test_recorded_alignment(name: str, debiased: bool) -> None:
    case = CASES[name]
    inputs, recorded = _inputs(case), case["outputs"]["cka_debiased" if debiased else "cka"]
    value = linear_cka(inputs["reprogrammed"], inputs["student"], debiased=debiased)
    if recorded is None:
        assert value.isnan()
    else:
        _close(value, recorded, case)


@pytest.mark.parametrize("name", CASES)
def test_recorded_loss_of_alignment(name: str) -> None:
    case = CASES[name]
    inputs, outputs = _inputs(case), case["outputs"]
    loss = cka_loss(inputs["reprogrammed"], inputs["student"])
    _close(loss, outputs["loss_cka"], case)
    leaves = inputs["reprogrammed"], inputs["student"]
    for side, gradient in zip(("reprogrammed", "student"), torch.autograd.grad(loss, leaves), strict=True):
        _close(gradient, outputs[f"grad_cka_{side}"], case)
    if outputs["cka"] is not None:
        _close(1 + loss, outputs["loss_cka_one_minus"], case)


@pytest.mark.parametrize("name", TOTALS)
@pytest.mark.parametrize("detached", [False, True])
def test_recorded_losses(name: str, detached: bool) -> None:
    case = CASES[name]
    inputs, outputs, params = _inputs(case), case["outputs"], case["params"]
    losses = rd_losses(
        **inputs,
        alpha=params["alpha_reprogrammed"],
        gamma=params["gamma_cka"],
        beta=params["beta_kl"],
        temperature=params["temperature"],
        detach_reprogrammed=detached,
    )
    for key in ("student", "reprogrammed", "kl", "total"):
        _close(losses[key], outputs[f"loss_{key}"], case)
    leaves = {side: inputs[side] for side in ("student", "reprogrammed")}
    leaves |= {"weight": inputs["classifier_weight"], "bias": inputs["classifier_bias"]}
    for side, gradient in zip(leaves, torch.autograd.grad(losses["total"], list(leaves.values())), strict=True):
        key = "_when_detached" if detached and side == "reprogrammed" else ""
        _close(gradient, outputs[f"grad_total_{side}{key}"], case)


# ------------------------------------------------------------------------------------------------ formulas
def _naive_cka(x: Tensor, y: Tensor) -> float:
    """By Gram matrices and the centring matrix, as HSIC is defined."""
    n = len(x)
    centring = torch.eye(n, dtype=x.dtype) - 1 / n
    k, m = (centring @ z @ z.T @ centring for z in (x, y))
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())


def _hsic_by_tuples(x: Tensor, y: Tensor) -> float:
    """The U-statistic whose expectation is HSIC, over all tuples of different samples (Gretton et al., 2005)."""
    n = len(x)
    k, m = (x @ x.T).tolist(), (y @ y.T).tolist()
    pairs = [k[i][j] * m[i][j] for i, j in itertools.permutations(range(n), 2)]
    triples = [k[i][j] * m[i][q] for i, j, q in itertools.permutations(range(n), 3)]
    fours = [k[i][j] * m[q][r] for i, j, q, r in itertools.permutations(range(n), 4)]
    return sum(pairs) / len(pairs) - 2 * sum(triples) / len(triples) + sum(fours) / len(fours)


sizes = st.tuples(st.integers(2, 9), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=30, deadline=None)
@given(shape=sizes, seed=st.integers(0, 1000))
def test_biased_is_the_naive_formula(shape: tuple[int, int, int], seed: int) -> None:
    rows, width, other = shape
    x, y = _random(rows, width, seed=seed), _random(rows, other, seed=seed + 1) + 3
    value = float(linear_cka(x, y))
    assert value == pytest.approx(_naive_cka(x, y), rel=1e-9)
    assert -1e-12 <= value <= 1 + 1e-12


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(4, 7), width=st.integers(2, 6), seed=st.integers(0, 1000))
def test_debiased_is_the_mean_over_tuples(rows: int, width: int, seed: int) -> None:
    x, y = _random(rows, width, seed=seed), _random(rows, width + 1, seed=seed + 1)
    xy, xx, yy = _hsic_by_tuples(x, y), _hsic_by_tuples(x, x), _hsic_by_tuples(y, y)
    value = linear_cka(x, y, debiased=True)
    if xx > 1e-9 and yy > 1e-9:
        assert float(value) == pytest.approx(xy / math.sqrt(xx * yy), rel=1e-6, abs=1e-9)
    elif xx < -1e-9 or yy < -1e-9:
        assert value.isnan()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 70.0]), debiased=st.booleans())
def test_alignment_sees_no_rotation_scale_or_shift(seed: int, scale: float, debiased: bool) -> None:
    x, y = _random(12, 5, seed=seed), _random(12, 4, seed=seed + 1)
    rotation = torch.linalg.qr(_random(5, 5, seed=seed + 2))[0]
    moved = scale * (x @ rotation) + _random(1, 5, seed=seed + 3)
    found = linear_cka(x, y, debiased=debiased)
    torch.testing.assert_close(linear_cka(moved, y, debiased=debiased), found, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(linear_cka(y, moved, debiased=debiased), found, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(linear_cka(x, moved, debiased=debiased), torch.ones_like(found))


@pytest.mark.parametrize("debiased", [False, True])
def test_alignment_sees_a_stretched_axis(debiased: bool) -> None:
    x, y = _random(12, 5), _random(12, 4, seed=1)
    stretched = x * torch.tensor([9.0, 1, 1, 1, 1])
    assert not torch.isclose(*(linear_cka(z, y, debiased=debiased) for z in (x, stretched)), rtol=0.01)


def test_the_order_of_pairs_matters() -> None:
    x = _random(20, 4)
    assert linear_cka(x, x.flip(0)) < 0.6


def test_wide_features_look_aligned_unless_debiased() -> None:
    pairs = [(_random(8, 64, seed=seed), _random(8, 64, seed=seed + 99)) for seed in range(20)]
    assert min(float(linear_cka(*pair)) for pair in pairs) > 0.8
    assert abs(sum(float(linear_cka(*pair, debiased=True)) for pair in pairs) / len(pairs)) < 0.1


# ------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("shape", [(7, 3, 4), (5, 8, 6)])  # both forms
@pytest.mark.parametrize("debiased", [False, True])
def test_gradients(shape: tuple[int, int, int], debiased: bool) -> None:
    rows, width, other = shape
    x, y = _random(rows, width).requires_grad_(), _random(rows, other, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: cka_loss(x, y, debiased=debiased), (x, y))


def test_gradients_of_the_total() -> None:
    labels = torch.tensor([0, 2, 1, 1, 0])
    leaves = [_random(5, 3, seed=1), _random(5, 3, seed=2), _random(4, 3, seed=3), _random(4, seed=4)]

    def total(r: Tensor, s: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return rd_losses(r, s, labels, weight, bias, alpha=0.5, gamma=2, beta=0)["total"]

    assert torch.autograd.gradcheck(total, [leaf.requires_grad_() for leaf in leaves])


def test_the_divergence_moves_the_student_only() -> None:
    teacher, student = _random(4, 3).requires_grad_(), _random(4, 3, seed=1).requires_grad_()
    loss = distillation_kl(teacher, student, temperature=3)
    found = torch.autograd.grad(loss, (teacher, student), allow_unused=True)
    assert found[0] is None
    expected = 3 * (F.softmax(student / 3, -1) - F.softmax(teacher / 3, -1)) / 4
    torch.testing.assert_close(found[1], expected.detach())
    assert distillation_kl(student, student).abs() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "constant", "debiased"),
    [(1, False, False), (1, False, True), (5, True, False), (5, True, True), (3, False, True)],
)
def test_undefined_is_zero_without_gradient(rows: int, constant: bool, debiased: bool, dtype: torch.dtype) -> None:
    x = _random(rows, 4).to(dtype)
    y = (torch.full((rows, 4), 0.1, dtype=dtype) if constant else _random(rows, 4, seed=1).to(dtype)).requires_grad_()
    x.requires_grad_()
    assert linear_cka(x, y, debiased=debiased).isnan()
    loss = cka_loss(x, y, debiased=debiased)
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (x, y)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_collapsed_to_rounding_is_undefined() -> None:
    x = _random(6, 4).float()
    collapsed = (1 + 1e-7 * _random(6, 4, seed=1)).float().requires_grad_()
    loss = cka_loss(x, collapsed)
    assert loss == 0 and not torch.autograd.grad(loss, collapsed)[0].any()
    spread = (1 + 1e-2 * _random(6, 4, seed=1)).float()
    assert linear_cka(x, spread).isfinite()


def test_two_samples_are_always_aligned_and_give_no_gradient() -> None:
    x, y = _random(2, 4).requires_grad_(), _random(2, 4, seed=1)
    loss = cka_loss(x, y)
    assert loss.item() == pytest.approx(-1)
    assert torch.autograd.grad(loss, x)[0].abs().max() < 1e-12


# ------------------------------------------------------------------------------------------------ dtypes
def test_autocast_and_half_precision_compute_in_float32() -> None:
    x, y = _random(16, 6).float(), _random(16, 6, seed=1).float() + 5
    expected = linear_cka(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cka(x, y)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    rounded = x.bfloat16(), y.bfloat16()
    assert torch.equal(linear_cka(*rounded), linear_cka(*(z.float() for z in rounded)))


# ------------------------------------------------------------------------------------------------ losses
def test_losses_of_logits_take_the_features_of_more_samples() -> None:
    r, s = _random(8, 3).requires_grad_(), _random(8, 3, seed=1).requires_grad_()
    weight, labels = _random(4, 3, seed=2), torch.arange(8) % 4
    whole = rd_losses(r, s, labels, weight, None)
    logits = F.linear(s, weight), F.linear(r, weight)
    parts = [rd_losses_of_logits(*(z[rows] for z in (*logits, labels)), r, s) for rows in (slice(4), slice(4, 8))]
    torch.testing.assert_close(sum(part["total"] for part in parts) / 2, whole["total"])
    assert parts[0]["cka"] == whole["cka"]


def test_a_term_without_weight_is_no_part_of_the_graph() -> None:
    r, s = _random(5, 3).requires_grad_(), _random(5, 3, seed=1).requires_grad_()
    labels, weight = torch.tensor([0, 1, 0, 1, 1]), _random(2, 3, seed=2)
    total = rd_losses(r, s, labels, weight, None, alpha=0, gamma=0)["total"]
    assert torch.equal(total, F.cross_entropy(F.linear(s, weight), labels))
    assert torch.autograd.grad(total, r, allow_unused=True)[0] is None


def test_label_smoothing_is_of_both_entropies() -> None:
    logits, other, labels = _random(4, 3), _random(4, 3, seed=1), torch.tensor([0, 2, 1, 1])
    losses = rd_losses_of_logits(logits, other, labels, logits, other, label_smoothing=0.2)
    for name, values in (("student", logits), ("reprogrammed", other)):
        torch.testing.assert_close(losses[name], F.cross_entropy(values, labels, label_smoothing=0.2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_cka(_random(3, 2), _random(4, 2)), r"x, y: found shapes \(3, 2\) and \(4, 2\), allowed"),
        (lambda: linear_cka(_random(3), _random(3)), r"x, y: found shapes \(3,\)"),
        (lambda: cka_loss(_random(0, 2), _random(0, 2)), r"with B > 0"),
        (lambda: distillation_kl(_random(2, 2), _random(2, 2), temperature=0), "temperature: found 0, allowed"),
        (
            lambda: rd_losses(_random(2, 4), _random(2, 3), torch.tensor([0, 1]), _random(2, 3), None),
            "found the widths 4 and 3, allowed is that of the shared classifier, 3",
        ),
    ],
)
def test_wrong_inputs_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
