"""Equations of DivBS: recorded cases, the explicit algorithm on explicit gradients, properties, edge cases."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.functional import (
    divbs_select,
    divbs_select_gram,
    divbs_select_with_info,
    gradient_norms,
    logit_residuals,
    sequence_gradients,
    sequence_means,
    sequence_sketch,
    sketch_projections,
)

CASES = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "divbs.json").read_text())["cases"]
}
GREEDY = [name for name, case in CASES.items() if "by_k" in case["outputs"]]


def _inputs(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    inputs = case["inputs"]
    hidden, logits = (torch.tensor(inputs[name], dtype=torch.float64) for name in ("hidden", "logits"))
    return hidden, logits, torch.tensor(inputs["labels"])


def _random(
    rows: int, classes: int, width: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=dtype)
    labels = torch.randint(classes, (rows,), generator=generator)
    return logit_residuals(logits, labels), torch.randn(rows, width, generator=generator, dtype=dtype)


def _explicit(residuals: Tensor, features: Tensor, k: int, rule: str) -> tuple[list[int], float]:
    """Gram-Schmidt on the gradients themselves."""
    gradients = torch.einsum("bc,bd->bcd", residuals, features).flatten(1)
    mean = gradients.mean(0)
    left, rest, picks = gradients.clone(), mean.clone(), []
    for _ in range(k):
        score = (left @ rest).abs()
        if rule == "projection":
            score = score / left.norm(dim=1)
        score[picks] = -1
        pick = int(score.argmax())
        direction = left[pick] / left[pick].norm()
        left = left - (left @ direction)[:, None] * direction
        rest = rest - (rest @ direction) * direction
        picks.append(pick)
    return picks, float(1 - rest.square().sum() / mean.square().sum())


# ------------------------------------------------------------------------------------------------ recorded cases
@pytest.mark.parametrize("name", GREEDY)
def test_recorded_selections(name: str) -> None:
    case = CASES[name]
    hidden, logits, labels = _inputs(case)
    residuals = logit_residuals(logits, labels) / len(labels)
    torch.testing.assert_close(residuals, torch.tensor(case["outputs"]["residuals"], dtype=torch.float64))
    norms = torch.tensor(case["outputs"]["gram_diagonal"], dtype=torch.float64)
    torch.testing.assert_close(gradient_norms(residuals, hidden).square(), norms)
    rows = torch.cat([residuals, hidden], dim=1)
    first = [int((rows == row).all(dim=1).nonzero()[0]) for row in rows]  # duplicates are interchangeable
    gram = (residuals @ residuals.t()) * (hidden @ hidden.t())
    for k, expected in case["outputs"]["by_k"].items():
        greedy = expected["n_greedy"]
        for indices, info in (
            divbs_select_with_info(residuals, hidden, int(k), rule=case["params"]["rule"]),
            divbs_select_gram(gram, int(k), rule=case["params"]["rule"]),
        ):
            picks = indices.tolist()
            assert [first[i] for i in picks[:greedy]] == [first[i] for i in expected["indices"][:greedy]]
            assert len(set(picks)) == int(k)
            assert int(info.num_greedy) == greedy
            assert float(info.captured_fraction) == pytest.approx(expected["captured_fraction"][-1], rel=1e-6)


def test_recorded_draws_of_the_released_code() -> None:
    case = CASES["official_sampling"]
    hidden, logits, labels = _inputs(case)
    residuals = logit_residuals(logits, labels) / len(labels)
    for seed, expected in case["outputs"]["by_seed"].items():
        generator = torch.Generator().manual_seed(int(seed))
        picks = divbs_select(residuals, hidden, case["params"]["k"], draw="sample", generator=generator)
        assert picks.tolist() == expected["indices"]


# ------------------------------------------------------------------------------------------------ selection
@pytest.mark.parametrize("rule", ["residual", "projection"])
@pytest.mark.parametrize(("classes", "width"), [(3, 7), (20, 30)])  # by columns, and by the whole matrix
def test_it_is_gram_schmidt_on_the_gradients(rule: Any, classes: int, width: int) -> None:
    residuals, features = _random(40, classes, width, seed=0)
    picks, info = divbs_select_with_info(residuals, features, 10, rule=rule)
    expected, captured = _explicit(residuals, features, 10, rule)
    assert picks.tolist() == expected
    assert float(info.captured_fraction) == pytest.approx(captured)


def test_residuals_are_the_gradients_of_the_losses() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels, targets = torch.tensor([0, 1, 2, 3, -100, 1]), torch.rand(6, 4, dtype=torch.float64)
    losses = {
        "classification": (F.cross_entropy(logits, labels, reduction="sum"), labels),
        "multi_label": (F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum(), targets),
        "regression": ((logits - targets).square().mean(1).sum(), targets),
    }
    for problem, (loss, given_labels) in losses.items():
        (expected,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(logit_residuals(logits, given_labels, problem=problem).detach(), expected)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 14), st.integers(2, 5), st.integers(1, 6), st.integers(1, 16), st.integers(0, 10**6))
def test_properties(rows: int, classes: int, width: int, k: int, seed: int) -> None:
    residuals, features = _random(rows, classes, width, seed)
    residuals = torch.cat([residuals, residuals[: rows // 2]])  # some twice
    features = torch.cat([features, features[: rows // 2]])
    total = len(residuals)
    picks, info = divbs_select_with_info(residuals, features, k)
    assert sorted(set(picks.tolist())) == sorted(picks.tolist()) and len(picks) == min(k, total)
    greedy = picks[: int(info.num_greedy)].tolist()
    originals = [pick if pick < rows else pick - rows for pick in greedy]
    assert len(set(originals)) == len(originals)  # no copy before everything is captured
    assert int(info.num_greedy) <= min(rows, (classes - 1) * width)
    assert 0 <= float(info.captured_fraction) <= 1
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    moved, moved_info = divbs_select_with_info(residuals[order], features[order], k)
    assert float(moved_info.captured_fraction) == pytest.approx(float(info.captured_fraction), abs=1e-6)
    if int(info.num_greedy) == len(picks) == int(moved_info.num_greedy):
        found = [int(order[pick]) for pick in moved]
        assert [pick if pick < rows else pick - rows for pick in found] == originals


def test_ties_go_to_the_lowest_index() -> None:
    residuals, features = _random(6, 3, 4, seed=0)
    order = [3, 1, 3, 1, 3, 5]
    picks = divbs_select(residuals[order], features[order], 3).tolist()
    assert set(picks) == {0, 1, 5}


def test_filling_is_random_without_replacement() -> None:
    residuals, features = torch.zeros(9, 3), torch.randn(9, 4)  # all perfectly fit: nothing to pick by
    seen = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        picks, info = divbs_select_with_info(residuals, features, 4, generator=generator)
        assert len(set(picks.tolist())) == 4
        assert (int(info.num_greedy), float(info.captured_fraction)) == (0, 1.0)
        seen |= set(picks.tolist())
    assert seen == set(range(9))
    drawn = divbs_select(residuals, features, 4, draw="sample", generator=torch.Generator().manual_seed(0))
    assert len(set(drawn.tolist())) == 4


def test_zero_rows_come_last() -> None:
    residuals, features = _random(8, 4, 6, seed=1)
    residuals[:4] = 0
    assert set(divbs_select(residuals, features, 4).tolist()) == {4, 5, 6, 7}


@pytest.mark.parametrize(("rows", "classes", "width"), [(1, 2, 1), (5, 2, 1)])
def test_smallest_sizes(rows: int, classes: int, width: int) -> None:
    residuals, features = _random(rows, classes, width, seed=0)
    assert sorted(divbs_select(residuals, features, 7).tolist()) == list(range(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_picks_as_the_same_values_do(dtype: torch.dtype) -> None:
    residuals, features = (value.to(dtype) for value in _random(24, 5, 8, seed=2))
    assert torch.equal(divbs_select(residuals, features, 6), divbs_select(residuals.double(), features.double(), 6))


def test_float32_of_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    residuals, features = _random(64, 5, 8, seed=3)
    expected = divbs_select(residuals, features, 16)
    monkeypatch.setattr("hf_ext.functional.divbs._LARGEST_IN_FLOAT64", 0)
    assert torch.equal(divbs_select(residuals, features, 16), expected)
    picks, info = divbs_select_with_info(residuals[:, :2], features[:, :3], 20)  # of rank 6
    assert len(set(picks.tolist())) == 20 and int(info.num_greedy) <= 6


def test_it_compiles() -> None:
    residuals, features = _random(16, 3, 4, seed=4)
    compiled = torch.compile(divbs_select, backend="eager", fullgraph=True)
    assert torch.equal(compiled(residuals, features, 4), divbs_select(residuals, features, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: found 0"),
        ({"rule": "best"}, "rule: found 'best', allowed are"),
        ({"draw": "best"}, "draw: found 'best', allowed are"),
        ({"features": torch.zeros(3, 2)}, r"features: found shape \(3, 2\)"),
        ({"features": torch.full((4, 2), float("nan"))}, "features: found 8 values that are NaN"),
        ({"residuals": torch.full((4, 2), float("inf"))}, "residuals: found 8 values"),
        ({"residuals": torch.zeros(0, 2), "features": torch.zeros(0, 2)}, "found no candidates"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    arguments = {"residuals": torch.zeros(4, 2), "features": torch.zeros(4, 2), "k": 2, **change}
    with pytest.raises(ValueError, match=message):
        divbs_select(**arguments)


@pytest.mark.parametrize(
    ("labels", "problem", "message"),
    [
        (torch.tensor([0, 3]), "classification", "labels: found 0 to 3, allowed are 0 to 2"),
        (torch.zeros(2, 3), "classification", "labels: found torch.float32"),
        (torch.zeros(2), "regression", r"labels: found shape \(2,\)"),
        (torch.tensor([0, 1]), "ranking", "problem: found 'ranking'"),
    ],
)
def test_refused_labels(labels: Tensor, problem: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logit_residuals(torch.zeros(2, 3), labels, problem=problem)


# ------------------------------------------------------------------------------------------------ sequences
def _sequences() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    logits = torch.randn(4, 6, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(9, (4, 6), generator=generator)
    labels[1, 2:], labels[3] = -100, -100
    return hidden, logits, labels


def test_sequence_gradients_are_those_of_the_head() -> None:
    hidden, logits, labels = _sequences()
    weight = torch.zeros(9, 5, dtype=torch.float64, requires_grad=True)
    for row, found in enumerate(sequence_gradients(hidden, logits, labels)):
        loss = F.cross_entropy(F.linear(hidden[row], weight) + logits[row], labels[row], reduction="sum")
        torch.testing.assert_close(found, torch.autograd.grad(loss, weight)[0].flatten())
    assert not sequence_gradients(hidden, logits, labels)[3].any()
    a, h = sequence_means(hidden, logits, labels)
    torch.testing.assert_close(h[1], hidden[1, :2].mean(0))
    torch.testing.assert_close(a[1], logit_residuals(logits, labels)[1, :2].mean(0))
    assert not a[3].any() and not h[3].any()


def test_sketches_keep_inner_products() -> None:
    hidden, logits, labels = _sequences()
    exact = sequence_gradients(hidden, logits, labels)
    narrow = sequence_sketch(hidden, logits, labels, sketch_projections(9, 5, dim=16))
    assert torch.equal(narrow, exact)  # neither side is wider than the sketch
    grams = []
    for seed in range(400):
        sketch = sequence_sketch(hidden, logits, labels, sketch_projections(9, 5, dim=4, seed=seed))
        assert sketch.shape == (4, 16)
        grams.append(sketch @ sketch.t())
    expected = exact @ exact.t()
    assert (torch.stack(grams).mean(0) - expected).abs().max() < 0.15 * expected.abs().max()
    assert not sketch[3].any()
    with pytest.raises(ValueError, match="labels: found shape"):
        sequence_sketch(hidden, logits, labels[:, 1:], (None, None))
