"""Equations of FedLESAM: recorded cases, properties, extreme sizes, lists that do not fit."""

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
    control_update,
    dynamic_update,
    global_control_update,
    lesam_perturbation,
    proximal_correction,
    scaffold_correction,
    server_update,
)

CASES = json.loads((Path(__file__).parents[1] / "golden" / "fedlesam.json").read_text())["cases"]
CLIENTS = [case for case in CASES if "client_updates" not in case["inputs"]]
SERVERS = [case for case in CASES if "client_updates" in case["inputs"]]
SHAPES = ((3, 2), (), (4,))
#: values of three tensors, flat; their squares are numbers, too
VALUES = st.lists(st.floats(-9, 9).map(lambda value: value if abs(value) > 1e-9 else 0.0), min_size=11, max_size=11)


def _tensors(values: Any) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def _shaped(values: list[float]) -> list[Tensor]:
    parts = torch.tensor(values, dtype=torch.float64).split([math.prod(shape) for shape in SHAPES])
    return [part.view(shape) for part, shape in zip(parts, SHAPES, strict=True)]


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def _same(got: Any, expected: Any, **tolerance: Any) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, torch.as_tensor(other, dtype=one.dtype), **tolerance)


# ------------------------------------------------------------------------------------------------ recorded
def _loss(params: list[Tensor], x: Tensor, labels: Tensor) -> Tensor:
    hidden = torch.tanh(F.linear(x, *params[:2])) if len(params) == 4 else x
    return F.cross_entropy(F.linear(hidden, *params[-2:]), labels)


@pytest.mark.parametrize("case", CLIENTS, ids=[case["name"] for case in CLIENTS])
def test_recorded_clients(case: dict[str, Any]) -> None:
    """All steps of SGD at `w + eps`, with what the variant adds to the gradient."""
    inputs, options, recorded = case["inputs"], case["params"], case["outputs"]
    tolerance = {"rtol": case["rtol"], "atol": case["atol"]}
    params = start = _tensors(inputs["params"])
    update = None if inputs["global_update"] is None else _tensors(inputs["global_update"])
    steps = lesam_perturbation(update, rho=options["rho"])
    assert (steps is None) == (update is None)
    if steps is None:
        steps = [torch.zeros_like(param) for param in params]
    else:
        _same(steps, recorded["perturbation"], **tolerance)
    correction = inputs["correction"]
    for number, (x, labels) in enumerate(zip(inputs["x"], inputs["labels"], strict=True)):
        moved = [(param + step).requires_grad_() for param, step in zip(params, steps, strict=True)]
        loss = _loss(moved, torch.tensor(x, dtype=torch.float64), torch.tensor(labels))
        grads = list(torch.autograd.grad(loss, moved))
        if correction is not None:
            grads = [g + options["lamb"] * c for g, c in zip(grads, _tensors(correction), strict=True)]
        scale = torch.clamp(options["max_grad_norm"] / (_flat(grads).norm() + 1e-6), max=1.0)
        grads = [grad * scale for grad in grads]
        if number == 0:
            _same(grads, recorded["first_grads"], **tolerance)
        decay = options["weight_decay"] + (options["lamb"] if options["variant"] == "D" else 0)
        params = [p - options["lr"] * (g + decay * p) for p, g in zip(params, grads, strict=True)]
    _same(params, recorded["new_params"], **tolerance)
    _same(proximal_correction(params, start), recorded["client_update"], **tolerance)


@pytest.mark.parametrize("case", SERVERS, ids=[case["name"] for case in SERVERS])
def test_recorded_servers(case: dict[str, Any]) -> None:
    inputs, recorded = case["inputs"], case["outputs"]
    updates = [_tensors([update]) for update in inputs["client_updates"]]
    new, change = server_update(_tensors([inputs["global_params"]]), updates, global_lr=case["params"]["global_lr"])
    _same(new, [recorded["new_global"]], rtol=case["rtol"], atol=case["atol"])
    _same(change, [recorded["global_update"]], rtol=case["rtol"], atol=case["atol"])


# ------------------------------------------------------------------------------------------------ perturbation
@settings(max_examples=50, deadline=None)
@given(VALUES, st.floats(0.01, 5), st.floats(1e-3, 1e3))
def test_the_perturbation_has_its_length_and_points_back(values: list[float], rho: float, scale: float) -> None:
    update = _shaped(values)
    steps = lesam_perturbation(update, rho=rho)
    size = _flat(update).norm()
    if size == 0:
        assert not _flat(steps).any()
        return
    assert _flat(steps).norm().item() == pytest.approx(rho)
    assert (_flat(steps) @ _flat(update) / size).item() == pytest.approx(-rho)
    again = lesam_perturbation([one * scale for one in update], rho=rho)
    torch.testing.assert_close(_flat(again), _flat(steps))


@pytest.mark.parametrize("size", [3e38, 1e30, 1e-30, 1e-44])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_size_of_the_update_overflows(size: float, dtype: torch.dtype) -> None:
    """The squares of these are not finite, or zero, in float32."""
    if dtype == torch.bfloat16 and size == 1e-44:
        size = 1e-40  # its least
    update = [torch.full((5,), size, dtype=dtype), torch.full((4,), -size, dtype=dtype)]
    steps = lesam_perturbation(update, rho=0.3)
    _same(steps, [[-0.1] * 5, [0.1] * 4], rtol=1e-2, atol=0)
    assert [step.dtype for step in steps] == [dtype, dtype]


def test_half_precision_is_computed_in_float32() -> None:
    update = [torch.full((40000,), 60000.0).half(), torch.full((40000,), 60000.0, dtype=torch.float64)]
    steps = lesam_perturbation(update, rho=1.0)
    assert [step.dtype for step in steps] == [torch.float16, torch.float64]
    assert steps[1][0].item() == pytest.approx(-(80000**-0.5), rel=1e-12)


def test_without_a_direction() -> None:
    assert lesam_perturbation(None, rho=0.1) is None
    assert lesam_perturbation([], rho=0.1) == []
    for update in ([torch.zeros(3), torch.zeros(2, 2).half()], [torch.zeros(0)], [torch.zeros(0), torch.zeros(2)]):
        steps = lesam_perturbation(update, rho=0.1)
        assert [(step.shape, step.dtype) for step in steps] == [(one.shape, one.dtype) for one in update]
        assert not _flat(steps).any()
    assert torch.equal(*lesam_perturbation([torch.ones(4)], rho=0.0), torch.zeros(4))
    (step,) = lesam_perturbation([torch.tensor([1.0, float("inf")])], rho=0.1)
    assert bool(step.isnan().any())
    (step,) = lesam_perturbation([torch.ones(2, requires_grad=True)], rho=0.1)
    assert not step.requires_grad


# ------------------------------------------------------------------------------------------------ corrections
def test_corrections_are_gradients_of_what_they_stand_for() -> None:
    torch.manual_seed(0)
    params, received, control = ([torch.randn(s, dtype=torch.float64) for s in SHAPES] for _ in range(3))
    for param in params:
        param.requires_grad_()
    both = zip(params, received, control, strict=True)
    value = sum(((p - r).square() / 2).sum() + (p * h).sum() for p, r, h in both)
    _same(proximal_correction(params, received, control), torch.autograd.grad(value, params))
    _same(proximal_correction(params, received), [p.detach() - r for p, r in zip(params, received, strict=True)])
    assert not any(one.requires_grad for one in proximal_correction(params, received))


@settings(max_examples=30, deadline=None)
@given(VALUES, VALUES, VALUES, st.lists(st.floats(1e-3, 1), min_size=1, max_size=5))
def test_the_control_is_the_mean_gradient_of_the_way(
    gradient: list[float], own: list[float], common: list[float], rates: list[float]
) -> None:
    """Steps along `g + c - c_i` with any rates: what comes out is g, whatever the controls were."""
    gradients, control, global_control = map(_shaped, (gradient, own, common))
    received = params = _shaped([1.0] * 11)
    for rate in rates:
        correction = scaffold_correction(global_control, control)
        params = [p - rate * (g + c) for p, g, c in zip(params, gradients, correction, strict=True)]
    new = control_update(control, global_control, params, received, sum_of_rates=sum(rates))
    _same(new, gradients, rtol=1e-9, atol=1e-9)
    each = control_update(control, global_control, params, received, sum_of_rates=[sum(rates)] * 3)
    _same(each, new)


def test_controls_grow_until_they_even_out_the_clients() -> None:
    """With a weight of 0.25, and gradients 1 and 3 of two clients that always take part."""
    controls, common, sums = [torch.zeros(1), torch.zeros(1)], torch.zeros(1), 0.5
    for _ in range(60):
        new = []
        for gradient, control in zip((1.0, 3.0), controls, strict=True):
            step = -sums * (gradient + 0.25 * (common - control))
            new += control_update([control], [common], [step], [torch.zeros(1)], sum_of_rates=sums)
        changes = [[after - before] for after, before in zip(new, controls, strict=True)]
        (common,) = global_control_update([common], changes, num_clients=2)
        controls = new
    corrected = [gradient + 0.25 * (common - control) for gradient, control in zip((1.0, 3.0), controls, strict=True)]
    _same(corrected, [[2.0], [2.0]], rtol=1e-5, atol=1e-5)


def test_nothing_learned_leaves_the_control() -> None:
    control, ones = [torch.tensor([2.0]), torch.tensor([3.0])], [torch.ones(1), torch.ones(1)]
    _same(control_update(control, ones, ones, ones, sum_of_rates=0), [[2.0], [3.0]])
    moved = [torch.zeros(1), torch.ones(1)]
    _same(control_update(control, ones, moved, ones, sum_of_rates=[0.5, 0.0]), [[3.0], [3.0]])
    for rates in (-1.0, [1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="sum_of_rates: found"):
            control_update(control, ones, ones, ones, sum_of_rates=rates)


def test_half_precision_differences_are_float32() -> None:
    """2049 is no number of float16."""
    one, other = [torch.tensor([2048.0]).half()], [torch.tensor([-1.0]).half()]
    assert dynamic_update(other, one, one)[0].dtype == torch.float32
    _same(dynamic_update(other, one, other), [[2048.0]])
    _same(proximal_correction(one, other), [[2049.0]])
    _same(scaffold_correction(one, other), [[2049.0]])
    _same(control_update(one, other, one, one, sum_of_rates=1.0), [[2049.0]])
    _same(global_control_update(one, [[torch.tensor([1.0]).half()]], num_clients=1), [[2049.0]])
    new, update = server_update(one, [[torch.tensor([1.0]).half()]] * 2)
    assert new[0].dtype == torch.float16 and update[0].dtype == torch.float32
    _same(update, [[1.0]])


# ------------------------------------------------------------------------------------------------ server
def test_the_server_counts_clients_alike_and_adds_the_control() -> None:
    new, update = server_update([torch.ones(2)], [[torch.full((2,), 3.0)], [torch.full((2,), 1.0)]], global_lr=0.5)
    _same((*new, *update), [[2.0, 2.0], [1.0, 1.0]])
    new, update = server_update([torch.ones(2)], [[torch.ones(2)]], global_lr=2.0, control=[torch.full((2,), 0.5)])
    _same((*new, *update), [[4.0, 4.0], [3.0, 3.0]])
    _same(global_control_update([torch.ones(1)], [[torch.ones(1)], [torch.ones(1)]], num_clients=8), [[1.25]])
    _same(global_control_update([torch.ones(1)], [], num_clients=8), [[1.0]])
    with pytest.raises(ValueError, match="client_updates: found none"):
        server_update([torch.ones(1)], [])
    with pytest.raises(ValueError, match="num_clients: found 1 with 2 changes"):
        global_control_update([torch.ones(1)], [[torch.ones(1)]] * 2, num_clients=1)


@pytest.mark.parametrize("wrong", [[torch.ones(2)], [torch.ones(2), torch.ones(1)], [torch.ones(2)] * 3])
def test_lists_that_do_not_fit(wrong: list[Tensor]) -> None:
    """Of another length, or of shapes that would be broadcast."""
    right = [torch.ones(2), torch.ones(3)]
    calls = {
        "received": lambda: proximal_correction(right, wrong),
        "control": lambda: proximal_correction(right, right, wrong),
        "global_control": lambda: control_update(right, wrong, right, right, sum_of_rates=1.0),
        "client 1": lambda: server_update(right, [right, wrong]),
        "client 0": lambda: global_control_update(right, [wrong], num_clients=2),
    }
    others = [
        lambda: scaffold_correction(right, wrong),
        lambda: dynamic_update(wrong, right, right),
        lambda: control_update(wrong, right, right, right, sum_of_rates=1.0),
        lambda: control_update(right, right, right, wrong, sum_of_rates=1.0),
        lambda: server_update(right, [right], control=wrong),
    ]
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name}: found tensors of shapes"):
            call()
    for call in others:
        with pytest.raises(ValueError, match="found tensors of shapes"):
            call()


def test_empty_lists() -> None:
    assert proximal_correction([], []) == scaffold_correction([], []) == dynamic_update([], [], []) == []
    assert control_update([], [], [], [], sum_of_rates=1.0) == []
    assert server_update([], [[]]) == ([], [])
