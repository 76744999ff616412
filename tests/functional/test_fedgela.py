"""Equations of FedGELA: recorded cases of the authors' code, properties of the simplex, what is refused."""

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
    etf_class_weights,
    etf_logits,
    narrow_simplex_etf,
    random_orthonormal,
    scaled_etf,
    simplex_etf,
    weighted_average,
)

CASES = json.loads((Path(__file__).parents[1] / "golden" / "fedgela.json").read_text())["cases"]
VIEWS = [case for case in CASES if "orthonormal" in case["inputs"]]
AVERAGES = [case for case in CASES if "client_sizes" in case["inputs"]]


def _double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return random_orthonormal(rows, columns, generator=torch.Generator().manual_seed(seed))


def _gram(classes: int) -> Tensor:
    """Ones on the diagonal, `-1/(C-1)` elsewhere."""
    return (torch.eye(classes) * classes - 1).double() / (classes - 1)


@pytest.mark.parametrize("case", VIEWS, ids=[case["name"] for case in VIEWS])
def test_recorded_views(case: dict[str, Any]) -> None:
    inputs, recorded = case["inputs"], case["outputs"]

    def close(got: Tensor, name: str) -> None:
        torch.testing.assert_close(got.detach(), _double(recorded[name]), rtol=case["rtol"], atol=case["atol"])

    etf = simplex_etf(_double(inputs["orthonormal"]))
    close(etf, "etf")
    close(etf.T @ etf, "etf_gram")
    weights = etf_class_weights(_double(inputs["class_counts"]))
    close(weights, "class_weights")
    features = _double(inputs["features"]).requires_grad_()
    logits = etf_logits(features, etf, class_weights=weights, temperature=case["params"]["temperature"])
    close(logits, "local_logits")
    loss = F.cross_entropy(logits, torch.tensor(inputs["labels"]))
    close(loss, "loss")
    close(torch.autograd.grad(loss, features)[0], "grad_features")
    close(etf_logits(features, etf), "global_logits")


@pytest.mark.parametrize("case", AVERAGES, ids=[case["name"] for case in AVERAGES])
def test_recorded_averages(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    (got,) = weighted_average([[_double(values)] for values in inputs["client_params"]], inputs["client_sizes"])
    torch.testing.assert_close(got, _double(case["outputs"]["new_global"]), rtol=case["rtol"], atol=case["atol"])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(0, 5), st.integers(0, 9))
def test_all_pairs_of_classes_are_equally_far_apart(classes: int, more: int, seed: int) -> None:
    wide = simplex_etf(_orthonormal(classes + more, classes, seed))
    narrow = narrow_simplex_etf(_orthonormal(classes - 1, classes - 1, seed))
    for etf in (wide, narrow):
        assert etf.dtype == torch.float64 and etf.shape[1] == classes
        torch.testing.assert_close(etf.T @ etf, _gram(classes))
        torch.testing.assert_close(etf.sum(dim=1), torch.zeros(len(etf)).double())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9).filter(any), st.randoms(use_true_random=False))
def test_weights_of_classes(counts: list[int], random: Any) -> None:
    """Mean 1, proportional to the counts, 0 where there are none; whatever their order and scale."""
    weights = etf_class_weights(torch.tensor(counts))
    assert weights.dtype == torch.float32
    assert weights.mean().item() == pytest.approx(1, rel=1e-6)
    torch.testing.assert_close(weights * sum(counts) / len(counts), torch.tensor(counts).float())
    assert weights.eq(0).tolist() == [count == 0 for count in counts]
    order = random.sample(range(len(counts)), len(counts))
    assert torch.equal(etf_class_weights(torch.tensor(counts)[order]), weights[order])
    torch.testing.assert_close(etf_class_weights(torch.tensor(counts) * 3), weights)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 99), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_averages(sizes: list[int], random: Any) -> None:
    """Between the smallest and the largest, the same in any order, and that of equal clients is theirs."""
    generator = torch.Generator().manual_seed(len(sizes))
    clients = [[torch.randn(3, 2, generator=generator).double(), torch.randn(4, generator=generator)] for _ in sizes]
    first, second = weighted_average(clients, sizes)
    assert first.dtype == torch.float64 and second.dtype == torch.float32
    stacked = torch.stack([params[0] for params in clients])
    assert (first <= stacked.amax(0) + 1e-12).all() and (first >= stacked.amin(0) - 1e-12).all()
    order = random.sample(range(len(sizes)), len(sizes))
    again = weighted_average([clients[i] for i in order], [sizes[i] for i in order])
    torch.testing.assert_close(again[0], first)
    torch.testing.assert_close(weighted_average([clients[0]] * len(sizes), sizes), list(clients[0]))


def test_a_client_of_no_size_would_count_nothing_and_a_large_one_all() -> None:
    (got,) = weighted_average([[torch.zeros(2)], [torch.ones(2)]], [1, 3])
    assert got.tolist() == [0.75, 0.75]
    halves = [[torch.ones(1).bfloat16()] for _ in range(3)]
    assert weighted_average(halves, [1, 1, 1])[0].dtype == torch.bfloat16
    assert weighted_average(halves, [1, 1, 1])[0].item() == 1.0  # thirds of it in bfloat16 would add up to less


def test_missing_classes_have_logit_0_and_the_scale_is_that_of_the_columns() -> None:
    etf, features = simplex_etf(_orthonormal(6, 4)), torch.randn(2, 3, 6).double()
    weights = etf_class_weights(torch.tensor([3, 0, 1, 0]))
    logits = etf_logits(features, etf, weights, temperature=0.1)
    assert logits.shape == (2, 3, 4) and not logits[..., [1, 3]].any()
    torch.testing.assert_close(logits, etf_logits(features, etf) * weights / 0.1)
    torch.testing.assert_close(logits, etf_logits(features, scaled_etf(etf, weights), temperature=0.1))
    assert scaled_etf(etf) is etf


def test_half_precision_is_computed_in_float32() -> None:
    etf, features = simplex_etf(_orthonormal(6, 4)).float(), torch.randn(5, 6)
    exact = etf_logits(features, etf, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(etf_logits(features, etf, temperature=0.05), exact)
    assert etf_logits(features.half(), etf.half()).dtype == torch.float32
    assert simplex_etf(_orthonormal(6, 4).bfloat16()).dtype == torch.float32
    assert narrow_simplex_etf(_orthonormal(3, 3).half()).dtype == torch.float32
    assert etf_class_weights(torch.ones(3).half()).dtype == torch.float32


def test_the_draw_is_that_of_the_generator() -> None:
    one, other = _orthonormal(7, 5, 3), _orthonormal(7, 5, 3)
    assert torch.equal(one, other) and not torch.equal(one, _orthonormal(7, 5, 4))
    torch.testing.assert_close(one.T @ one, torch.eye(5).double())
    normal = torch.randn(7, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert ((one.T @ normal).diagonal() > 0).all()  # the sign that makes it one and the same


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simplex_etf(torch.eye(5)[:4]), r"orthonormal: found \[4, 5\], allowed are at least as many rows"),
        (lambda: simplex_etf(torch.eye(1)), "classes: found 1, allowed are at least 2"),
        (lambda: narrow_simplex_etf(torch.ones(3, 2)), r"rotation: found \[3, 2\], allowed is a square matrix"),
        (lambda: narrow_simplex_etf(torch.ones(0, 0)), "classes: found 1, allowed are at least 2"),
        (lambda: _orthonormal(2, 3), "rows: found 2, allowed are at least as many as columns, 3"),
        (lambda: etf_class_weights(torch.zeros(3)), "class_counts: found zeros alone"),
        (lambda: etf_class_weights(torch.tensor([2, -1])), r"class_counts: found \[2, -1\], allowed are finite numb"),
        (lambda: etf_class_weights(torch.tensor([2, float("inf")])), "class_counts: found .*inf"),
        (lambda: etf_class_weights(torch.ones(2, 2)), r"class_counts: found shape \[2, 2\]"),
        (lambda: etf_class_weights(torch.ones(0)), r"class_counts: found shape \[0\]"),
        (lambda: etf_logits(torch.ones(1, 2), torch.eye(2), torch.ones(3)), r"class_weights: found shape \[3\], .* 2"),
        (lambda: etf_logits(torch.ones(1, 2), torch.eye(2), temperature=0), "temperature: found 0, allowed are"),
        (lambda: weighted_average([], []), "client_sizes: found 0 for 0 clients"),
        (lambda: weighted_average([[torch.ones(1)]], [1, 2]), "client_sizes: found 2 for 1 clients"),
        (lambda: weighted_average([[torch.ones(1)]] * 2, [1, 0]), "client_sizes: found 0, allowed are finite numbers"),
        (lambda: weighted_average([[torch.ones(1)]], [float("nan")]), "client_sizes: found nan"),
        (lambda: weighted_average([[torch.ones(1)], []], [1, 1]), r"client_params: found shapes \[\] of client 1"),
        (lambda: weighted_average([[torch.ones(1)], [torch.ones(2)]], [1, 1]), r"found shapes \[\[2\]\] of client 1"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
