"""Equations of the FER matcher: recorded cases, gradients, properties, edge cases."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_ext.functional import fer_losses, fer_sample_losses, similarity_logits

CASES = {
    case["name"]: case for case in json.loads((Path(__file__).parents[1] / "golden" / "fer.json").read_text())["cases"]
}


def _close(got: Tensor, recorded: Any, case: dict[str, Any]) -> None:
    expected = torch.tensor(recorded, dtype=torch.float64)
    torch.testing.assert_close(got.detach(), expected, rtol=case.get("rtol", 1e-6), atol=case.get("atol", 1e-8))


def _batch(seed: int, rows: int = 6, classes: int = 4, width: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2 * rows + classes, width, generator=generator, dtype=torch.float64)
    return {
        "features": drawn[:rows],
        "neutral_features": drawn[rows : 2 * rows],
        "text_features": drawn[2 * rows :],
        "labels": torch.randint(classes, (rows,), generator=generator),
    }


@pytest.mark.parametrize("pairs", ["all", "paired"])
@pytest.mark.parametrize("name", CASES)
def test_recorded(name: str, pairs: Any) -> None:
    case = CASES[name]
    inputs, params, outputs = case["inputs"], case["params"], case["outputs"]
    tail = "" if pairs == "all" else "_paired"
    f, n, text = (
        torch.tensor(inputs[key], dtype=torch.float64) for key in ("feature_e", "feature_n", "text_features")
    )
    f.requires_grad_(), n.requires_grad_()
    scale = params["logit_scale"]
    _close(similarity_logits(f, text, logit_scale=scale), outputs["similarity_logits"], case)
    found = fer_losses(
        f,
        n,
        text,
        torch.tensor(inputs["labels"]),
        neutral_id=params["neutral_index"],
        logit_scale=scale,
        contrast_pairs=pairs,
        **{key: params[key] for key in ("lambda_s", "lambda_t", "lambda_c")},
    )
    for term, key in (("match", "loss_match"), ("transform", "loss_transform")):
        _close(found[term], outputs[key], case)
    for term in ("contrast", "total"):
        _close(found[term], outputs[f"loss_{term}{tail}"], case)
    grads = torch.autograd.grad(found["total"], (f, n), allow_unused=True)
    for grad, key in zip(grads, ("grad_feature_e", "grad_feature_n"), strict=True):
        _close(torch.zeros_like(f) if grad is None else grad, outputs[key + tail], case)


@pytest.mark.parametrize("pairs", ["all", "paired"])
def test_gradients_by_finite_differences(pairs: Any) -> None:
    batch = _batch(0, rows=3)
    batch["labels"] = torch.tensor([1, 3, 0])

    def total(f: Tensor, n: Tensor) -> Tensor:
        rest = {**batch, "features": f, "neutral_features": n}
        return fer_losses(**rest, neutral_id=0, logit_scale=3.0, contrast_pairs=pairs, lambda_t=0.7, lambda_c=0.3)[
            "total"
        ]

    inputs = [batch[name].clone().requires_grad_() for name in ("features", "neutral_features")]
    assert torch.autograd.gradcheck(total, inputs)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), split=st.integers(0, 6))
def test_all_pairs_are_what_a_double_loop_gives_and_parts_add_up(seed: int, split: int) -> None:
    batch = _batch(seed)
    options: dict[str, Any] = {"neutral_id": 2, "logit_scale": 10.0}
    whole = fer_losses(**batch, **options)
    rows = [i for i, label in enumerate(batch["labels"].tolist()) if label != 2]
    a = F.normalize(batch["text_features"][batch["labels"]], dim=-1)
    p, q = F.normalize(batch["features"], dim=-1), F.normalize(batch["neutral_features"], dim=-1)
    pairs = [2 - a[i] @ p[j] + a[i] @ q[j] for i in rows for j in rows]
    expected = torch.stack(pairs).mean() if pairs else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(whole["contrast"], expected)

    for kind in ("all", "paired"):
        whole = fer_losses(**batch, **options, contrast_pairs=kind)
        counts = torch.bincount(batch["labels"], minlength=4)
        parts = [
            fer_losses(
                **{name: value if name == "text_features" else value[part] for name, value in batch.items()},
                **options,
                contrast_pairs=kind,
                label_counts=counts,
            )
            for part in (slice(0, split), slice(split, None))
        ]
        for name, value in whole.items():
            torch.testing.assert_close(parts[0][name] + parts[1][name], value)


@pytest.mark.parametrize("neutral_id", [1, None])
def test_without_anything_but_neutral_faces_only_matching_counts(neutral_id: int | None) -> None:
    batch = _batch(3)
    batch["labels"] = torch.full((6,), 1)
    f, n = (batch[name].requires_grad_() for name in ("features", "neutral_features"))
    found = fer_losses(**batch, neutral_id=neutral_id, logit_scale=5.0)
    assert found["transform"] == found["contrast"] == 0
    assert found["total"] == found["match"] > 0
    grads = torch.autograd.grad(found["transform"] + found["contrast"] + 0 * (f + n).sum(), (f, n))
    assert not torch.stack(grads).any()


def test_no_difference_at_all_has_a_loss_of_one_and_no_nan() -> None:
    batch = _batch(4)
    batch["labels"] = torch.full((6,), 3)
    f = batch["features"].requires_grad_()
    found = fer_losses(**{**batch, "neutral_features": f.detach().clone()}, neutral_id=0, logit_scale=5.0)
    assert found["transform"] == 1
    assert torch.autograd.grad(found["total"], f)[0].isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    batch = {name: value.bfloat16() if value.is_floating_point() else value for name, value in _batch(5).items()}
    exact = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    options: dict[str, Any] = {"neutral_id": 0, "logit_scale": 100.0}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fer_losses(**batch, **options)
        logits = similarity_logits(batch["features"], batch["text_features"], logit_scale=100.0)
    expected = fer_losses(**exact, **options)
    assert all(value.dtype == torch.float32 for value in found.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        logits.double(),
        similarity_logits(exact["features"], exact["text_features"], logit_scale=100.0),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: similarity_logits(b["features"], torch.rand(3, 2), logit_scale=1.0), r"text_features: found shape"),
        (
            lambda b: fer_losses(**b, neutral_id=0, logit_scale=1.0, contrast_pairs="some"),  # type: ignore[arg-type]
            "contrast_pairs: found 'some', allowed are",
        ),
        (
            lambda b: fer_sample_losses(**{**b, "labels": b["labels"][:2]}, neutral_id=0, logit_scale=1.0),
            r"labels: found shape \(2,\), allowed is \[6\]",
        ),
        (
            lambda b: fer_sample_losses(**{**b, "neutral_features": b["features"][:2]}, neutral_id=0, logit_scale=1.0),
            "neutral_features: found shape",
        ),
    ],
)
def test_wrong_input(call: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(_batch(0))


def test_whatever_the_default_dtype() -> None:
    options: dict[str, Any] = {"neutral_id": 2, "logit_scale": 10.0}
    expected = fer_losses(**_batch(6), **options)
    torch.set_default_dtype(torch.float64)
    try:
        found = fer_losses(**_batch(6), **options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
