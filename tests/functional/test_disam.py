"""Equations of DISAM: recorded cases of the authors' code, gradients, properties, edge cases."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.functional import (
    disam_ascent_loss,
    disam_sample_weights,
    domain_mean_losses,
    domain_sums,
    domain_variance_weights,
    gsam_descent,
    sagm_descent,
    sagm_perturbation,
    sam_perturbation,
)

CASES = json.loads((Path(__file__).parents[1] / "golden" / "disam.json").read_text())["cases"]
BATCHES = st.lists(st.tuples(st.floats(0, 9), st.integers(0, 4)), min_size=1, max_size=12)


def _model(params: list[Tensor], x: Tensor) -> Tensor:
    if len(params) == 2:
        return F.linear(x, *params)
    return F.linear(torch.tanh(F.linear(x, *params[:2])), *params[2:])


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_recorded_steps(case: dict[str, Any]) -> None:
    inputs, options, recorded = case["inputs"], case["params"], case["outputs"]
    x = torch.tensor(inputs["x"], dtype=torch.float64)
    labels, domains = torch.tensor(inputs["labels"]), torch.tensor(inputs["domain_ids"])
    params = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in inputs["params"]]

    def close(got: Any, name: str) -> None:
        for one, other in zip(got, recorded[name], strict=True):
            expected = torch.tensor(other, dtype=torch.float64)
            torch.testing.assert_close(one.detach(), expected, rtol=case["rtol"], atol=case["atol"])

    losses = F.cross_entropy(_model(params, x), labels, reduction="none")
    ascent = disam_ascent_loss(losses, domains, lambda_=options["lambda_"])
    close(domain_mean_losses(losses, domains), "domain_losses")
    assert ascent.item() == pytest.approx(recorded["ascent_loss"])
    grads = torch.autograd.grad(ascent, params, retain_graph=True)
    close(grads, "ascent_grads")
    weights = disam_sample_weights(losses, domains, lambda_=options["lambda_"])
    close(torch.autograd.grad((weights * losses).sum(), params), "ascent_grads")
    steps = sam_perturbation(params, grads, rho=options["rho"], adaptive=options["adaptive"])
    close(steps, "perturbation")
    moved = [(param.detach() + step).requires_grad_() for param, step in zip(params, steps, strict=True)]
    loss = F.cross_entropy(_model(moved, x), labels)
    assert loss.item() == pytest.approx(recorded["perturbed_loss"])
    descent = torch.autograd.grad(loss, moved)
    close(descent, "perturbed_grads")
    close([param - options["lr"] * grad for param, grad in zip(params, descent, strict=True)], "new_params")


@settings(max_examples=50, deadline=None)
@given(BATCHES, st.floats(0, 5))
def test_weights_of_samples_have_the_ascent_losss_gradient(batch: list[tuple[float, int]], lambda_: float) -> None:
    losses = torch.tensor([loss for loss, _ in batch], dtype=torch.float64, requires_grad=True)
    domains = torch.tensor([domain for _, domain in batch])
    (gradient,) = torch.autograd.grad(disam_ascent_loss(losses, domains, lambda_=lambda_), losses)
    weights = disam_sample_weights(losses, domains, lambda_=lambda_)
    torch.testing.assert_close(weights, gradient)
    assert not weights.requires_grad
    assert weights.sum().item() == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(BATCHES, st.integers(0, 12))
def test_sums_of_parts_give_the_weights_of_the_whole(batch: list[tuple[float, int]], cut: int) -> None:
    losses = torch.tensor([loss for loss, _ in batch], dtype=torch.float64)
    domains = torch.tensor([domain for _, domain in batch])
    parts = [domain_sums(losses[rows], domains[rows], num_domains=6) for rows in (slice(cut), slice(cut, None))]
    sums, counts = (sum(values) for values in zip(*parts, strict=True))
    weights = domain_variance_weights(sums / counts, counts, lambda_=0.7)  # nan where a domain is absent
    whole = disam_sample_weights(losses, domains, lambda_=0.7)
    torch.testing.assert_close(1 / len(batch) + weights[domains], whole)
    assert weights[5] == 0


def test_one_domain_is_sam() -> None:
    losses = torch.rand(5, dtype=torch.float64)
    same = torch.full((5,), 3)
    assert disam_ascent_loss(losses, same, lambda_=2.0) == losses.mean()
    torch.testing.assert_close(disam_sample_weights(losses, same, lambda_=2.0), torch.full((5,), 0.2).double())


def test_domains_above_the_average_weigh_less() -> None:
    losses, domains = torch.tensor([3.0, 3.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    weights = disam_sample_weights(losses, domains, lambda_=0.1)
    assert weights.tolist() == pytest.approx([0.2, 0.2, 0.3, 0.3])


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_perturbation_is_the_worst_of_its_length(adaptive: bool) -> None:
    """Of all steps of length rho (relative to the weights if adaptive) it raises a linear loss most."""
    rng = np.random.default_rng(0)
    params = [torch.from_numpy(rng.normal(size=size)) for size in ((3, 4), (5,))]
    grads = [torch.from_numpy(rng.normal(size=param.shape)) for param in params]
    steps = sam_perturbation(params, grads, rho=0.3, adaptive=adaptive)

    def length(tensors: list[Tensor]) -> float:
        parts = [t / p.abs() if adaptive else t for t, p in zip(tensors, params, strict=True)]
        return float(torch.cat([part.flatten() for part in parts]).norm())

    def rise(tensors: list[Tensor]) -> float:
        return sum(float((t * g).sum()) for t, g in zip(tensors, grads, strict=True))

    assert length(steps) == pytest.approx(0.3)
    for _ in range(100):
        other = [torch.from_numpy(rng.normal(size=param.shape)) for param in params]
        assert rise([t * 0.3 / length(other) for t in other]) <= rise(steps) + 1e-12


def test_the_perturbation_ignores_the_gradients_scale() -> None:
    grads = [torch.randn(3), torch.randn(2, 2)]
    params = [torch.randn_like(grad) for grad in grads]
    once = sam_perturbation(params, grads, rho=0.1)
    scaled = sam_perturbation(params, [grad * 65536 for grad in grads], rho=0.1)
    torch.testing.assert_close(once, scaled)


def test_parts_of_low_precision_leave_the_others_exact() -> None:
    grads = [torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([2.0, 4.0], dtype=torch.float64)]
    steps = sam_perturbation([torch.ones(2), torch.ones(2)], grads, rho=0.3)
    assert steps[1].tolist() == pytest.approx([0.3 * 2 / 5, 0.3 * 4 / 5], rel=1e-12)


@pytest.mark.parametrize("kind", [sam_perturbation, partial(sagm_perturbation, alpha=0.1)])
def test_perturbations_are_no_part_of_a_graph(kind: Any) -> None:
    param, grad = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    assert not any(step.requires_grad for step in kind([param], [grad], rho=0.1, adaptive=True))


def test_what_gsam_adds_is_orthogonal_to_the_perturbed_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    first, perturbed = ([torch.randn(shape, generator=generator) for shape in ((3, 2), (4,))] for _ in range(2))
    added = [new - old for new, old in zip(gsam_descent(perturbed, first, alpha=0.7), perturbed, strict=True)]
    inner = sum((a * p).sum() for a, p in zip(added, perturbed, strict=True))
    assert abs(float(inner)) < 1e-5
    descends = sum((a * g).sum() for a, g in zip(added, first, strict=True))
    assert float(descends) < 0  # descending along it raises the loss, so that the gap shrinks
    for one, other in zip(gsam_descent(perturbed, first, alpha=0.0), perturbed, strict=True):
        assert torch.equal(one, other)


def test_sagm_by_hand() -> None:
    params, grads = [torch.zeros(2)], [torch.tensor([3.0, 4.0])]
    (step,) = sagm_perturbation(params, grads, rho=0.5, alpha=0.01)
    torch.testing.assert_close(step, torch.tensor([3.0, 4.0]) * (0.5 / 5 - 0.01))
    (descent,) = sagm_descent([torch.tensor([1.0, 0.0])], grads)
    assert descent.tolist() == [2.0, 2.0]


def test_edge_cases() -> None:
    assert sam_perturbation([], [], rho=0.1) == []
    (step,) = sam_perturbation([torch.ones(3)], [torch.zeros(3)], rho=0.1)
    assert torch.equal(step, torch.zeros(3))
    mixed = sam_perturbation([torch.ones(2), torch.ones(2).half()], [torch.ones(2), torch.ones(2).half()], rho=2.0)
    assert [step.dtype for step in mixed] == [torch.float32, torch.float16]
    assert torch.cat([step.float() for step in mixed]).norm().item() == pytest.approx(2.0, rel=1e-3)
    halves = torch.tensor([1.0, 2.0]).half()
    assert domain_mean_losses(halves, torch.tensor([0, 1])).dtype == torch.float32
    assert domain_mean_losses(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([-7, 9, -7])).tolist() == [2.0, 5.0]
