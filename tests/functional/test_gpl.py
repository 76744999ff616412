"""Equations of GPL: recorded cases, dense matrices beside them, gradients, edge cases."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.functional import (
    edge_homophily,
    edge_weights,
    label_propagation_loss,
    propagate_labels,
    rank_and_select,
    rank_select_loss,
)

CASES = json.loads((Path(__file__).parents[1] / "golden" / "gpl.json").read_text())["cases"]


def _cases(function: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in CASES if case["params"]["function"] == function]


def _leaf(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def _mask(values: Any) -> Tensor | None:
    return None if values is None else torch.tensor(values)


def _edges(case: dict[str, Any]) -> Tensor:
    return torch.tensor(case["inputs"]["edge_index"]).reshape(2, -1)


def _close(got: Tensor, recorded: Any, case: dict[str, Any]) -> None:
    recorded = torch.tensor(math.nan if recorded is None else recorded, dtype=torch.float64)
    torch.testing.assert_close(got.detach().double(), recorded, rtol=case["rtol"], atol=case["atol"], equal_nan=True)


def _gradients(total: Tensor, *leaves: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found, strict=True)
    ]


# ------------------------------------------------------------------------------------------------ recorded cases
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("case", _cases("edge_weights"))
def test_recorded_edge_weights(case: dict[str, Any], kind: Any) -> None:
    scores, outputs = _leaf(case["inputs"]["edge_scores"]), case["outputs"]
    weights = edge_weights(scores, _edges(case), num_nodes=case["params"]["num_nodes"], kind=kind)
    _close(weights, outputs[kind], case)
    (gradient,) = _gradients((weights * torch.tensor(case["inputs"]["g"])).sum(), scores)
    _close(gradient, outputs[f"grad_edge_scores_{kind}"], case)


@pytest.mark.parametrize("kind", ["lazy", "restart"])
@pytest.mark.parametrize("case", _cases("propagate_labels"))
def test_recorded_propagation(case: dict[str, Any], kind: Any) -> None:
    inputs, params, outputs = case["inputs"], case["params"], case["outputs"]
    weight, labels = _leaf(inputs["edge_weight"]), _leaf(inputs["labels"])
    options = {name: params[name] for name in ("steps", "alpha")}
    found = propagate_labels(
        _edges(case), weight, labels, kind=kind, clamp_mask=_mask(inputs["clamp_mask"]), **options
    )
    _close(found, outputs[kind], case)
    by_labels, by_weight = _gradients((found * torch.tensor(inputs["g"])).sum(), labels, weight)
    _close(by_labels, outputs[f"grad_labels_{kind}"], case)
    _close(by_weight, outputs[f"grad_edge_weight_{kind}"], case)


@pytest.mark.parametrize("form", ["nll", "log_negative"])
@pytest.mark.parametrize("case", _cases("label_propagation_loss"))
def test_recorded_label_propagation_loss(case: dict[str, Any], form: Any) -> None:
    inputs, recorded = case["inputs"], case["outputs"][form]
    options = {name: value for name, value in case["params"].items() if name != "function"}
    weight, labels = _leaf(inputs["edge_weight"]), _leaf(inputs["labels"])
    masks = _mask(inputs["positive_mask"]), _mask(inputs["negative_mask"])
    losses = label_propagation_loss(_edges(case), weight, labels, *masks, form=form, **options)  # type: ignore[arg-type]
    for name in ("positive", "negative", "total"):
        _close(losses[name], recorded[name], case)
    by_weight, by_labels = _gradients(losses["total"], weight, labels)
    _close(by_weight, recorded["grad_edge_weight"], case)
    _close(by_labels, recorded["grad_labels"], case)


@pytest.mark.parametrize("case", _cases("rank_and_select"))
def test_recorded_selection_and_its_loss(case: dict[str, Any]) -> None:
    inputs, outputs = case["inputs"], case["outputs"]
    positive = torch.tensor(inputs["positive_mask"])
    selected = rank_and_select(torch.tensor(inputs["scores"]), ~positive, prior=case["params"]["prior"])
    assert selected.tolist() == outputs["selected"]
    for reduction in ("balanced", "sample"):
        scores, recorded = _leaf(inputs["scores"]), outputs[reduction]
        losses = rank_select_loss(scores, positive, selected, reduction=reduction)  # type: ignore[arg-type]
        for name in ("positive", "negative", "total"):
            _close(losses[name], recorded[name], case)
        _close(_gradients(losses["total"], scores)[0], recorded["grad_scores"], case)


@pytest.mark.parametrize("kind", ["edge", "adjusted"])
@pytest.mark.parametrize("case", _cases("edge_homophily"))
def test_recorded_homophily(case: dict[str, Any], kind: Any) -> None:
    y, weight = torch.tensor(case["inputs"]["y"]), torch.tensor(case["inputs"]["edge_weight"], dtype=torch.float64)
    _close(edge_homophily(_edges(case), y, kind=kind), case["outputs"][kind], {**case, "rtol": 1e-6, "atol": 1e-7})
    _close(edge_homophily(_edges(case), y, edge_weight=weight, kind=kind), case["outputs"][f"{kind}_weighted"], case)


@pytest.mark.parametrize("case", _cases("step"))
def test_recorded_step(case: dict[str, Any]) -> None:
    """Select, then the gradient of the edges by the selection, and that of the scores."""
    inputs, outputs, params = case["inputs"], case["outputs"], case["params"]
    positive, logits, scores = (
        torch.tensor(inputs["positive_mask"]),
        _leaf(inputs["edge_scores"]),
        _leaf(inputs["scores"]),
    )
    selected = rank_and_select(scores, ~positive, prior=params["prior"])
    assert selected.tolist() == outputs["selected"]
    taken = positive | selected
    weight = edge_weights(logits, _edges(case), num_nodes=len(scores))
    options = {name: params[name] for name in ("steps", "alpha")}
    lpl = label_propagation_loss(_edges(case), weight, taken.double(), taken, ~taken, **options)["total"]
    _close(lpl, outputs["lpl"], case)
    _close(_gradients(lpl, logits)[0], outputs["grad_edge_scores"], case)
    loss = rank_select_loss(scores, positive, selected)["total"]
    _close(loss, outputs["loss"], case)
    _close(_gradients(loss, scores)[0], outputs["grad_scores"], case)


# ------------------------------------------------------------------------------------------------ dense matrices
def _graph(seed: int, nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(nodes, (2, edges), generator=generator)
    weight = torch.rand(edges, generator=generator, dtype=torch.float64)
    return index, torch.where(torch.rand(edges, generator=generator) < 0.3, 0.0, weight)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    nodes=st.integers(1, 7),
    edges=st.integers(0, 20),
    steps=st.integers(0, 4),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    kind=st.sampled_from(["lazy", "restart"]),
)
def test_propagation_is_the_dense_formula(
    seed: int, nodes: int, edges: int, steps: int, alpha: float, kind: Any
) -> None:
    """Loops, duplicates, nodes without an edge into them and edges of weight 0 among them."""
    index, weight = _graph(seed, nodes, edges)
    adjacency = torch.zeros(nodes, nodes, dtype=torch.float64).index_put((index[1], index[0]), weight, accumulate=True)
    degree = adjacency.sum(1, keepdim=True)
    mean = torch.where(degree > 0, adjacency / degree.clamp(min=1e-300), torch.eye(nodes, dtype=torch.float64))
    first = torch.rand(nodes, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = first
    for _ in range(steps):
        expected = alpha * (first if kind == "restart" else expected) + (1 - alpha) * mean @ expected
    found = propagate_labels(index, weight, first, steps=steps, alpha=alpha, kind=kind)
    torch.testing.assert_close(found, expected)
    columns = [propagate_labels(index, weight, column, steps=steps, alpha=alpha, kind=kind) for column in first.T]
    torch.testing.assert_close(torch.stack(columns, 1), expected)


def test_messages_follow_the_edge() -> None:
    path = torch.tensor([[0, 1], [1, 2]])
    found = propagate_labels(path, None, torch.tensor([1, 0, 0]), steps=1, alpha=0.0)
    assert found.tolist() == [1, 1, 0]  # a step further each time; the first has nothing to take from


def test_clamped_nodes_keep_their_labels_but_hand_them_on() -> None:
    ring = torch.tensor([[0, 1, 2], [1, 2, 0]])
    clamp = torch.tensor([True, False, False])
    found = propagate_labels(ring, None, torch.tensor([1.0, 0.0, 0.0]), steps=5, alpha=0.0, clamp_mask=clamp)
    assert found.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_at_least_float32(dtype: torch.dtype) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    index, values = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([0.25, 0.5, 1.0], dtype=dtype)
    mask = torch.tensor([True, False, False])
    weights = edge_weights(values, index, num_nodes=3, kind="softmax")
    assert weights.dtype == propagate_labels(index, weights, values, steps=1, alpha=0.5).dtype == wide
    assert rank_select_loss(values, mask, ~mask)["total"].dtype == wide
    assert edge_homophily(index, torch.tensor([0, 0, 1]), edge_weight=values).dtype == wide


# ------------------------------------------------------------------------------------------------ hard numbers
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_edge_weights_of_extreme_scores(kind: Any) -> None:
    scores = torch.tensor([800.0, -800.0, 800.0, -800.0], requires_grad=True)
    index = torch.tensor([[1, 2, 0, 2], [0, 0, 1, 2]])
    weights = edge_weights(scores, index, num_nodes=4, kind=kind)
    assert weights.tolist() == ([1, 0, 1, 0] if kind == "sigmoid" else [1, 0, 1, 1])
    assert _gradients(weights.sum(), scores)[0].isfinite().all()
    assert len(edge_weights(torch.zeros(0), torch.zeros(2, 0, dtype=torch.long), num_nodes=3, kind=kind)) == 0


def test_loss_where_all_weights_are_zero() -> None:
    """Nobody hears anything: each keeps q(0), and no weight has a gradient."""
    index, q = torch.tensor([[0, 1], [1, 0]]), torch.tensor([1.0, 0.0])
    weight = torch.zeros(2, requires_grad=True)
    losses = label_propagation_loss(index, weight, q, q > 0, q < 1, steps=3, alpha=0.0)
    assert float(losses["total"].detach()) == pytest.approx(2e-6, rel=0.1)  # eps of each
    assert _gradients(losses["total"], weight)[0].tolist() == [0, 0]


def test_no_positives_no_negatives() -> None:
    none = torch.zeros(2, dtype=torch.bool)
    index, q = torch.tensor([[0, 1], [1, 0]]), torch.tensor([1.0, 0.0])
    propagated = label_propagation_loss(index, None, q, none, none, steps=1, alpha=0.0)
    for losses in (propagated, rank_select_loss(q, none, none, none)):
        assert list(map(float, losses.values())) == [0, 0, 0]


def test_cutting_an_edge_to_the_other_class_lowers_the_loss() -> None:
    """With its own loop a node hears itself, and the gradient turns the foreign neighbour down."""
    index = torch.tensor([[1, 0, 1], [0, 0, 1]])  # 1 -> 0, and a loop each
    weight = torch.ones(3, requires_grad=True)
    q = torch.tensor([1.0, 0.0])
    loss = label_propagation_loss(index, weight, q, q > 0, q < 1, steps=1, alpha=0.0)["total"]
    gradient = _gradients(loss, weight)[0]
    assert gradient[0] > 0 > gradient[1]


# ------------------------------------------------------------------------------------------------ ranks
@pytest.mark.parametrize(("prior", "expected"), [(0.0, 0), (0.12, 0), (0.125, 1), (0.5, 2), (1.0, 4)])
def test_how_many_are_selected(prior: float, expected: int) -> None:
    unlabeled = torch.tensor([True, True, False, True, True])
    selected = rank_and_select(torch.zeros(5), unlabeled, prior=prior)
    assert selected.nonzero()[:, 0].tolist() == [0, 1, 3, 4][:expected]  # ties to the first; never outside of U


def test_selection_takes_infinite_scores_and_tensors() -> None:
    scores = torch.tensor([-math.inf, math.inf, 0.0])
    selected = rank_and_select(scores, torch.ones(3, dtype=torch.bool), prior=torch.tensor(1 / 3))
    assert selected.tolist() == [False, True, False]


@pytest.mark.parametrize("reduction", ["balanced", "sample"])
def test_parts_of_the_loss_add_up(reduction: Any) -> None:
    """Nodes in two batches, with the counts of the whole."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, generator=generator)
    positive = torch.rand(40, generator=generator) < 0.3
    selected = rank_and_select(scores, ~positive, prior=0.4)
    whole = rank_select_loss(scores, positive, selected, reduction=reduction)
    counts = (int((positive | selected).sum()), int((~positive & ~selected).sum()))
    parts = [
        rank_select_loss(scores[rows], positive[rows], selected[rows], reduction=reduction, counts=counts)
        for rows in (slice(0, 13), slice(13, 40))
    ]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


def test_loss_of_extreme_scores() -> None:
    scores = torch.tensor([800.0, -800.0], requires_grad=True)
    positive = torch.tensor([False, True])
    losses = rank_select_loss(scores, positive, torch.zeros(2, dtype=torch.bool))
    assert float(losses["total"].detach()) == 1600
    assert _gradients(losses["total"], scores)[0].tolist() == [1, -1]


# ------------------------------------------------------------------------------------------------ homophily
def test_homophily_where_it_is_undefined() -> None:
    loops, y = torch.tensor([[0, 1], [0, 1]]), torch.tensor([0, 1])
    edges = torch.tensor([[0, 1], [1, 0]])
    for kind in ("edge", "adjusted"):
        assert edge_homophily(loops, y, kind=kind).isnan()  # type: ignore[arg-type]
        assert edge_homophily(edges, torch.tensor([-1, 1]), kind=kind).isnan()  # type: ignore[arg-type]
    assert edge_homophily(edges, torch.tensor([1, 1])) == 1
    assert edge_homophily(edges, torch.tensor([1, 1]), edge_weight=torch.tensor([0.1, 0.7]), kind="adjusted").isnan()
    assert edge_homophily(edges, y, kind="adjusted") == -1


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: edge_weights(torch.zeros(2), e, num_nodes=2, kind="tanh"), "kind: found 'tanh'"),  # type: ignore[arg-type]
        (lambda e: edge_weights(torch.zeros(3), e, num_nodes=2), r"edge_scores: found shape \(3,\)"),
        (lambda e: propagate_labels(e.T[:1], None, torch.zeros(2), steps=1, alpha=0), "edge_index: found shape"),
        (lambda e: propagate_labels(e, torch.zeros(3), torch.zeros(2), steps=1, alpha=0), "edge_weight: found shape"),
        (lambda e: propagate_labels(e, None, torch.zeros(2), steps=-1, alpha=0), "steps: found -1"),
        (lambda e: propagate_labels(e, None, torch.zeros(2), steps=1, alpha=1.5), "alpha: found 1.5"),
        (
            lambda e: label_propagation_loss(e, None, torch.zeros(2, 2), torch.ones(2) > 0, steps=1, alpha=0),
            r"labels: found shape \(2, 2\)",
        ),
        (
            lambda e: label_propagation_loss(e, None, torch.zeros(2), torch.ones(2) > 0, steps=1, alpha=0, eps=0.5),
            "eps: found 0.5",
        ),
        (lambda e: rank_and_select(torch.zeros(2), torch.ones(2) > 0, prior=1.5), "prior: found 1.5"),
        (lambda e: rank_and_select(torch.tensor([0, math.nan]), torch.ones(2) > 0, prior=0.5), "scores: found NaN"),
        (lambda e: edge_homophily(e, torch.zeros(2), kind="node"), "kind: found 'node'"),  # type: ignore[arg-type]
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.tensor([[0, 1], [1, 0]]))
