"""Equations of MoLA: recorded cases of the authors' code, gradients, properties, edge cases."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_ext.adapters.mola import ImageRouter
from hf_ext.functional import (
    combine_task_losses,
    lora_mixture_conv2d,
    lora_mixture_linear,
    mola,
    router_routing,
    task_routing,
    twd_loss,
)

CASES = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "mola.json").read_text())["cases"]
}
TWD = [name for name, case in CASES.items() if "features" in case["inputs"]]
LAYERS = [name for name, case in CASES.items() if "lora_A" in case["inputs"]]


def _leaf(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def _close(got: Tensor, recorded: Any, case: dict[str, Any]) -> None:
    expected = torch.tensor(recorded, dtype=torch.float64)
    torch.testing.assert_close(got.detach(), expected, rtol=case.get("rtol", 1e-6), atol=case.get("atol", 1e-8))


# ------------------------------------------------------------------------------------------------ recorded cases
@pytest.mark.parametrize("name", LAYERS)
def test_recorded_layers(name: str) -> None:
    case = CASES[name]
    inputs, params, outputs = case["inputs"], case["params"], case["outputs"]
    leaves = {key: _leaf(inputs[key]) for key in ("x", "weight", "lora_A", "lora_B")}
    if "task_ids" in inputs:
        w = task_routing(torch.tensor(inputs["task_ids"]), num_experts=params["num_experts"]).double()
    else:
        leaves["router_logits"] = _leaf(inputs["router_logits"])
        hard = params.get("routing") == "hard_straight_through"
        w = router_routing(leaves["router_logits"], kind="hard" if hard else "soft")
        _close(w, outputs["router_weights"], case)
    bias = torch.tensor(inputs["bias"], dtype=torch.float64) if inputs.get("bias") else None
    x, weight, lora_A, lora_B = (leaves[key] for key in ("x", "weight", "lora_A", "lora_B"))
    if "conv_form" in params:
        geometry = {key: params[key] for key in ("stride", "padding", "dilation")}
        form = {"kernel_size": params["kernel_size"], "form": params["conv_form"], "scaling": params["scaling"]}
        y = F.conv2d(x, weight, bias, **geometry) + lora_mixture_conv2d(x, lora_A, lora_B, w, **geometry, **form)
    else:
        base = F.linear(x, weight, bias)
        y = base + lora_mixture_linear(x, lora_A, lora_B, w, scaling=params["scaling"])
        onto = lora_mixture_linear(x, lora_A, lora_B, w, scaling=params["scaling"], base=base)
        torch.testing.assert_close(onto, y, rtol=1e-12, atol=1e-12)
    _close(y, outputs["y"], case)
    gradients = torch.autograd.grad((y * torch.tensor(inputs["g"], dtype=torch.float64)).sum(), list(leaves.values()))
    for key, gradient in zip(leaves, gradients, strict=True):
        _close(gradient, outputs[f"grad_{key}"], case)


@pytest.mark.parametrize("name", TWD)
def test_recorded_twd(name: str) -> None:
    case = CASES[name]
    features = _leaf(case["inputs"]["features"])
    loss = twd_loss(features, torch.tensor(case["inputs"]["task_ids"]), temperature=case["params"]["temperature"])
    _close(loss, case["outputs"]["loss"], case)
    _close(torch.autograd.grad(loss, features)[0], case["outputs"]["grad_features"], case)


def test_recorded_twd_on_projected_logits() -> None:
    case = CASES["twd_on_projected_logits"]
    logits, weight, bias = (_leaf(case["inputs"][key]) for key in ("router_logits", "proj_weight", "proj_bias"))
    features = F.linear(logits, weight, bias)
    loss = case["params"]["twd_weight"] * twd_loss(features, torch.tensor(case["inputs"]["task_ids"]))
    _close(loss, case["outputs"]["weighted_loss"], case)
    names = ("router_logits", "proj_weight", "proj_bias")
    for key, gradient in zip(names, torch.autograd.grad(loss, [logits, weight, bias]), strict=True):
        _close(gradient, case["outputs"][f"grad_{key}"], case)


@pytest.mark.parametrize("reduction", ["sum", "sample"])
def test_recorded_task_losses(reduction: Any) -> None:
    case = CASES["task_loss_composition"]
    logits = _leaf(case["inputs"]["logits"])
    losses = F.cross_entropy(logits, torch.tensor(case["inputs"]["labels"]), reduction="none")
    ids = torch.tensor(case["inputs"]["task_ids"])
    loss = combine_task_losses(losses, ids, num_tasks=case["params"]["num_tasks"], reduction=reduction)
    _close(loss, case["outputs"][reduction], case)
    _close(torch.autograd.grad(loss, logits)[0], case["outputs"][f"grad_logits_{reduction}"], case)


def test_recorded_router_network() -> None:
    """Every parameter is filled by the formula that the case states."""
    case = CASES["router_network_forward"]
    shape = case["inputs"]["x_shape"]
    router = ImageRouter(shape[1], case["params"]["num_experts"], max_size=None).double().eval()
    parameters = list(router.parameters())
    assert [list(value.shape) for value in parameters] == case["inputs"]["parameter_shapes"]
    with torch.no_grad():
        for i, (name, value) in enumerate(router.named_parameters()):
            k = torch.arange(value.numel(), dtype=torch.float64)
            if value.ndim == 1:
                filled = 0.1 * torch.sin(k + i) + (1.0 if name.endswith("weight") else 0.0)
            else:
                filled = torch.sin(0.7 * k + i) * math.sqrt(2 / (value.numel() / value.shape[0]))
            value.copy_(filled.view(value.shape))
        x = torch.sin(0.3 * torch.arange(math.prod(shape), dtype=torch.float64)).view(shape)
        logits = router(x)
    _close(logits, case["outputs"]["logits"], case)
    _close(router_routing(logits), case["outputs"]["router_weights"], case)


# ------------------------------------------------------------------------------------------------ layers
sizes = st.integers(1, 4)


@settings(max_examples=25, deadline=None)
@given(batch=sizes, experts=sizes, rank=sizes, width=sizes, out=sizes, tokens=sizes, one=st.booleans())
def test_linear_is_the_loop_over_experts(
    batch: int, experts: int, rank: int, width: int, out: int, tokens: int, one: bool
) -> None:
    x = torch.randn(batch, tokens, width, dtype=torch.float64)
    lora_A = torch.randn(experts, rank, width, dtype=torch.float64)
    lora_B = torch.randn(experts, out, rank, dtype=torch.float64)
    w = torch.rand(1 if one else batch, experts, dtype=torch.float64)
    expected = sum(0.5 * w[:, e, None, None] * (x @ lora_A[e].t() @ lora_B[e].t()) for e in range(experts))
    torch.testing.assert_close(lora_mixture_linear(x, lora_A, lora_B, w, scaling=0.5), expected)


@pytest.mark.parametrize("form", ["factored", "loralib"])
@pytest.mark.parametrize("one_row", [False, True])
def test_conv_is_the_convolution_with_the_mixed_kernel(form: Any, one_row: bool) -> None:
    torch.manual_seed(0)
    E, r, i, o, k = 3, 2, 4, 5, 3
    x = torch.randn(3, i, 7, 6, dtype=torch.float64)
    w = torch.rand(1 if one_row else 3, E, dtype=torch.float64)
    if form == "factored":
        lora_A, lora_B = torch.randn(E, r, i, k, k).double(), torch.randn(E, o, r).double()
        updates = torch.einsum("eor,erihw->eoihw", lora_B, lora_A)
    else:
        lora_A, lora_B = torch.randn(E, r * k, i * k).double(), torch.randn(E, o * k, r * k).double()
        updates = (lora_B @ lora_A).view(E, o, i, k, k)
    geometry = {"stride": 2, "padding": 1, "dilation": 1}
    got = lora_mixture_conv2d(x, lora_A, lora_B, w, scaling=2.0, kernel_size=k, form=form, **geometry)
    for b in range(3):
        kernel = 2.0 * torch.einsum("e,eoihw->oihw", w[0 if one_row else b], updates)
        torch.testing.assert_close(got[b : b + 1], F.conv2d(x[b : b + 1], kernel, **geometry))


# ------------------------------------------------------------------------------------------------ own experts
def _call(kind: str, x: Tensor, lora_A: Tensor, lora_B: Tensor, w: Tensor, one_hot: bool) -> Tensor:
    if kind == "linear":
        return lora_mixture_linear(x, lora_A, lora_B, w, scaling=0.7, one_hot=one_hot)
    if kind == "linear onto":
        base = torch.ones(*x.shape[:-1], lora_B.shape[1], dtype=x.dtype)
        return lora_mixture_linear(x, lora_A, lora_B, w, scaling=0.7, base=base, one_hot=one_hot)
    geometry: Any = {"kernel_size": 3, "stride": 2, "padding": 1}
    return lora_mixture_conv2d(x, lora_A, lora_B, w, scaling=0.7, form=kind, one_hot=one_hot, **geometry)  # type: ignore[arg-type]


def _factors(kind: str, dtype: torch.dtype, experts: int = 3) -> tuple[Tensor, Tensor]:
    shapes = {"factored": ((2, 4, 3, 3), (5, 2)), "loralib": ((6, 12), (15, 6))}.get(kind, ((2, 4), (5, 2)))
    return tuple(torch.randn(experts, *shape, dtype=dtype, requires_grad=True) for shape in shapes)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["linear", "linear onto", "factored", "loralib"])
@pytest.mark.parametrize("rows", [1, 2, 4], ids=["one for all", "two rows a sample", "one a row"])
@pytest.mark.parametrize("own", [False, True])
def test_one_hot_routing_either_way(kind: str, rows: int, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own experts, or all side by side: values, gradients and their gradients are those of any other routing."""
    asked: list[dict[str, int]] = []
    monkeypatch.setattr(mola, "_own_experts_are_cheaper", lambda **sizes: asked.append(sizes) or own)
    torch.manual_seed(0)
    lora_A, lora_B = _factors(kind, torch.float64)
    x = torch.randn(4, *((6, 4) if kind.startswith("linear") else (4, 7, 6)), dtype=torch.float64, requires_grad=True)
    w = task_routing(torch.tensor([2, 0, 0, 1][:rows]), num_experts=3).double()
    results = []
    for one_hot in (False, True):
        y = _call(kind, x, lora_A, lora_B, w, one_hot)
        first = torch.autograd.grad(
            (y * torch.arange(y.numel()).view_as(y)).sum(), (x, lora_A, lora_B), create_graph=True
        )
        second = torch.autograd.grad(sum(value.square().sum() for value in first), (x, lora_A, lora_B))
        results.append((y, *first, *second))
    for plain, one_hot in zip(*results, strict=True):
        torch.testing.assert_close(one_hot, plain, rtol=1e-10, atol=1e-10)
    if kind != "loralib":  # which has no choice
        pixels = 6 * 4 if kind.startswith("linear") else 7 * 6 * 4 // (4 * 9)
        grouped = {} if kind.startswith("linear") else {"grouped": True}
        assert asked == [{"rows": rows, "positions": pixels // rows, "experts": 3, "rank": 2, **grouped}]


@pytest.mark.parametrize("kind", ["linear", "linear onto", "factored", "loralib"])
@pytest.mark.parametrize("own", [False, True])
def test_a_row_of_nan_spoils_its_sample_and_no_other(kind: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a wrong id shows on a device, where nothing looks at ids."""
    monkeypatch.setattr(mola, "_own_experts_are_cheaper", lambda **_: own)
    x = torch.randn(3, *((6, 4) if kind.startswith("linear") else (4, 7, 6)))
    w = task_routing(torch.tensor([2, 0, 1]), num_experts=3)
    w[1] = math.nan
    spoilt = _call(kind, x, *_factors(kind, torch.float32), w, True).isnan().flatten(1)
    assert spoilt.all(dim=1).tolist() == spoilt.any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("sizes", "own"),
    [
        # few channels of a convolution
        ({"rows": 32, "positions": 87, "experts": 4, "rank": 4, "grouped": True}, False),
        ({"rows": 32, "positions": 87, "experts": 4, "rank": 8, "grouped": True}, True),
        # experts, positions: short inputs keep all experts side by side
        ({"rows": 32, "positions": 197, "experts": 4, "rank": 8}, True),
        ({"rows": 32, "positions": 16, "experts": 4, "rank": 8}, True),
        ({"rows": 32, "positions": 4, "experts": 4, "rank": 8}, False),
        ({"rows": 32, "positions": 1, "experts": 4, "rank": 8}, False),
        ({"rows": 32, "positions": 1, "experts": 16, "rank": 8}, False),
        ({"rows": 32, "positions": 2, "experts": 16, "rank": 8}, True),
        ({"rows": 32, "positions": 1, "experts": 64, "rank": 8}, True),
        ({"rows": 32, "positions": 197, "experts": 1, "rank": 8}, False),
        # few rows, as in generation: reading all experts costs more than a copy
        ({"rows": 1, "positions": 1, "experts": 4, "rank": 8}, True),
        ({"rows": 1, "positions": 1, "experts": 2, "rank": 8}, False),
        # many short rows: the copies would take more memory than all else
        ({"rows": 4096, "positions": 1, "experts": 64, "rank": 8}, False),
        ({"rows": 4096, "positions": 8, "experts": 64, "rank": 8}, True),
        ({"rows": 0, "positions": 0, "experts": 64, "rank": 8}, False),
    ],
    ids=str,
)
def test_where_own_experts_are_copied(sizes: dict[str, int], own: bool) -> None:
    assert mola._own_experts_are_cheaper(**sizes) == own


@pytest.mark.parametrize("kind", ["linear", "factored"])
@pytest.mark.parametrize("experts", [16, 64])
def test_one_expert_a_sample_takes_the_operations_of_one_lora(kind: str, experts: int) -> None:
    x = torch.randn(8, *((32, 4) if kind == "linear" else (4, 24, 24)), requires_grad=True)

    def operations(experts: int) -> int:
        w = task_routing(torch.arange(8) % experts, num_experts=experts)
        lora_A, lora_B = _factors(kind, torch.float32, experts)
        with FlopCounterMode(display=False) as counter:
            y = _call(kind, x, lora_A, lora_B, w, True)
            if kind == "linear":  # the counter takes the backward pass of a grouped convolution for an ungrouped one
                y.sum().backward()
        return counter.get_total_flops()

    assert operations(experts) == operations(1)


def test_conv_forms_agree_for_one_pixel() -> None:
    lora_A, lora_B, w = torch.randn(3, 2, 4), torch.randn(3, 5, 2), torch.rand(2, 3)
    x = torch.randn(2, 4, 1, 1)  # the smallest image
    common = {"scaling": 1.0, "kernel_size": 1}
    factored = lora_mixture_conv2d(x, lora_A[..., None, None], lora_B, w, **common, form="factored")
    loralib = lora_mixture_conv2d(x, lora_A, lora_B, w, **common, form="loralib")
    torch.testing.assert_close(factored, loralib)
    torch.testing.assert_close(factored[..., 0, 0], lora_mixture_linear(x[..., 0, 0], lora_A, lora_B, w, scaling=1.0))


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 4).double().requires_grad_(), torch.rand(2, 3).double().requires_grad_()
    lora_A, lora_B = torch.randn(3, 2, 4).double().requires_grad_(), torch.randn(3, 5, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: lora_mixture_linear(*a, scaling=0.7), (x, lora_A, lora_B, w))
    features = torch.randn(5, 3).double().requires_grad_()
    ids = torch.tensor([0, 1, 0, 1, 2])
    assert torch.autograd.gradcheck(lambda f: twd_loss(f, ids, temperature=0.5), (features,))


def test_one_expert_is_plain_lora() -> None:
    x, A, B = torch.randn(4, 6), torch.randn(1, 2, 6), torch.randn(1, 3, 2)
    got = lora_mixture_linear(x, A, B, router_routing(torch.randn(4, 1)), scaling=2.0)
    torch.testing.assert_close(got, 2.0 * x @ A[0].t() @ B[0].t())


def test_an_absent_task_gets_a_zero_gradient_not_none() -> None:
    A, B = torch.randn(3, 2, 6, requires_grad=True), torch.randn(3, 4, 2, requires_grad=True)
    w = task_routing(torch.tensor([0, 2]), num_experts=3)
    lora_mixture_linear(torch.randn(2, 6), A, B, w, scaling=1.0).sum().backward()
    assert A.grad[1].abs().max() == B.grad[1].abs().max() == 0
    assert A.grad[0].abs().max() > 0


def test_unknown_forms_are_refused() -> None:
    A, B, w, x = torch.randn(1, 2, 3), torch.randn(1, 2, 2), torch.ones(1, 1), torch.randn(1, 1, 4, 4)
    with pytest.raises(ValueError, match="form: found 'other'"):
        lora_mixture_conv2d(x, A, B, w, scaling=1, kernel_size=3, form="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="square kernels only"):
        lora_mixture_conv2d(x, A, B, w, scaling=1, kernel_size=(1, 3), form="loralib")


# ------------------------------------------------------------------------------------------------ routing
def test_task_routing_is_one_hot() -> None:
    assert task_routing(torch.tensor([2, 0]), num_experts=3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert task_routing(torch.tensor([], dtype=torch.int64), num_experts=3).shape == (0, 3)


@pytest.mark.parametrize("ids", [[3], [-1], [0, 5]])
def test_ids_out_of_range_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="task_ids: found ids from .* allowed are 0 to 2"):  # noqa: RUF043
        task_routing(torch.tensor(ids), num_experts=3)


@pytest.mark.parametrize("ids", [torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor(0)])
def test_ids_of_another_kind_are_refused(ids: Tensor) -> None:
    with pytest.raises(ValueError, match="task_ids: found torch"):
        task_routing(ids, num_experts=3)


def test_hard_routing_is_exactly_one_hot_with_the_gradient_handed_through() -> None:
    logits = torch.randn(5, 4, requires_grad=True)
    w = router_routing(logits, kind="hard")
    assert torch.equal(w, F.one_hot(logits.argmax(-1), 4).float())
    g = torch.randn(5, 4)
    assert torch.equal(torch.autograd.grad(w, logits, g)[0], g)
    with pytest.raises(ValueError, match="kind: found 'top-k'"):
        router_routing(logits, kind="top-k")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ losses
def _naive_twd(features: Tensor, ids: Tensor, temperature: float) -> Tensor:
    u = features / features.norm(dim=1, keepdim=True)
    terms = []
    for i in range(len(u)):
        others = [k for k in range(len(u)) if k != i]
        total = sum(torch.exp(u[i] @ u[k] / temperature) for k in others)
        terms += [-torch.log(torch.exp(u[i] @ u[j] / temperature) / total) for j in others if ids[i] == ids[j]]
    return torch.stack(terms).mean()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), batch=st.integers(3, 9), temperature=st.sampled_from([0.1, 0.5, 1.0, 3.0]))
def test_twd_is_the_loop_over_pairs(seed: int, batch: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(2, (batch,), generator=generator)  # three samples of two tasks: some pair is positive
    loss = twd_loss(features, ids, temperature=temperature)
    torch.testing.assert_close(loss, _naive_twd(features, ids, temperature))
    order = torch.randperm(batch, generator=generator)
    torch.testing.assert_close(loss, twd_loss(3.0 * features[order], ids[order], temperature=temperature))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), tasks=st.integers(1, 5))
def test_twd_of_parts_is_that_of_the_whole(seed: int, sizes: list[int], tasks: int) -> None:
    """Each part finds the loss of the whole and the gradient of its rows, from the pairs of its rows alone."""
    generator = torch.Generator().manual_seed(seed)
    batch, width, temperature = sum(sizes), 4, 0.5
    features = torch.randn(batch, width, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(tasks, (batch,), generator=generator)
    expected = twd_loss(features, ids, temperature=temperature)
    (gradient,) = torch.autograd.grad(expected, features)
    gathered: list[Tensor] = []  # what a part gets of all: it brings its rows of the same

    def noting(rows: Tensor) -> Tensor:
        gathered.append(rows)
        return rows

    twd_loss(features, ids, temperature=temperature, gather=noting)
    firsts = [sum(sizes[:part]) for part in range(len(sizes))]
    for first, size in zip(firsts, sizes, strict=True):
        own, wholes = features.detach()[first : first + size].requires_grad_(), iter(gathered)

        def gather(rows: Tensor, first: int = first, wholes: Iterator[Tensor] = wholes) -> Tensor:
            whole = next(wholes)
            torch.testing.assert_close(rows, whole[first : first + len(rows)])
            return whole

        with FlopCounterMode(display=False) as counter:
            loss = twd_loss(own, ids[first : first + size], temperature=temperature, gather=gather, first=first)
        assert counter.get_total_flops() == 2 * size * batch * width
        torch.testing.assert_close(loss, expected)
        loss.backward()
        torch.testing.assert_close(own.grad, gradient[first : first + size])


@pytest.mark.parametrize("ids", [[0], [0, 1, 2]], ids=["one sample", "no positive pair"])
def test_twd_without_positive_pair_is_zero_with_a_live_graph(ids: list[int]) -> None:
    features = torch.randn(len(ids), 4, requires_grad=True)
    loss = twd_loss(features, torch.tensor(ids))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient.abs().max() == 0


def test_twd_of_a_single_task_is_at_least_log_of_the_others() -> None:
    features = torch.randn(6, 4, requires_grad=True)
    loss = twd_loss(features, torch.zeros(6, dtype=torch.int64))
    assert loss.item() >= math.log(5)
    assert torch.autograd.grad(loss, features)[0].abs().max() > 0


def test_twd_of_a_zero_row_is_finite() -> None:
    features = torch.zeros(4, 3, requires_grad=True)
    loss = twd_loss(features, torch.tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(math.log(3))
    assert torch.isfinite(torch.autograd.grad(loss, features)[0]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    features, ids = torch.randn(8, 4).to(dtype), torch.tensor([0, 0, 1, 1] * 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = twd_loss(features, ids)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(twd_loss(features.float(), ids).item(), rel=1e-6)
    assert router_routing(features).dtype == torch.float32
    assert combine_task_losses(features[:, 0], ids, num_tasks=2).dtype == torch.float32


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 9))
def test_sum_over_parts_with_global_counts_is_the_sum_over_all(seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(10, generator=generator, dtype=torch.float64)
    ids = torch.randint(3, (10,), generator=generator)
    counts = torch.bincount(ids, minlength=3)
    whole = combine_task_losses(losses, ids, num_tasks=3, reduction="sum")
    parts = [slice(None, cut), slice(cut, None)]
    summed = sum(
        combine_task_losses(losses[p], ids[p], num_tasks=3, reduction="sum", task_counts=counts) for p in parts
    )
    torch.testing.assert_close(summed, whole)


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction: found 'mean'"):
        combine_task_losses(torch.rand(2), torch.tensor([0, 1]), num_tasks=2, reduction="mean")  # type: ignore[arg-type]
