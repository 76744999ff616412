"""Equations of TARF: recorded cases, gradients, properties, edge cases."""

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
    annealed_ascent_weight,
    confidence_attack,
    gravity_by_label,
    gravity_threshold,
    npo_loss,
    relative_gravity,
    representation_gravity,
    retain_mask,
    retain_mask_by_label,
    saliency_masks,
    tarf_loss,
    tarf_phase,
    unlearning_gap,
)

CASES = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "tarf.json").read_text())["cases"]
}
STEPS = [name for name, case in CASES.items() if "forget_loss" in case["outputs"]]
TOPS = [name for name, case in CASES.items() if "top_fraction" in case["params"]]
GROUPS = [name for name, case in CASES.items() if "n_hidden_groups" in case["params"]]


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64 if torch.tensor(values).is_floating_point() else torch.int64)


def _close(got: Any, recorded: Any, case: dict[str, Any]) -> None:
    expected = torch.tensor(recorded, dtype=torch.float64)
    got = torch.as_tensor(got).detach().double()
    torch.testing.assert_close(got, expected, rtol=case.get("rtol", 1e-6), atol=case.get("atol", 1e-8))


# ------------------------------------------------------------------------------------------------ recorded cases
def test_recorded_schedule() -> None:
    case = CASES["schedule"]
    for setting, expected in zip(case["params"]["settings"], case["outputs"]["k_t"], strict=True):
        weights = [annealed_ascent_weight(t, **setting) for t in case["inputs"]["t"]]
        _close(torch.tensor(weights, dtype=torch.float64), expected, case)


def test_recorded_phases() -> None:
    case = CASES["phases"]
    for setting, expected in zip(case["params"]["settings"], case["outputs"]["phases"], strict=True):
        assert [tarf_phase(t, **setting) for t in range(len(expected))] == expected


def test_recorded_gravity_and_mask() -> None:
    case = CASES["gravity_and_mask_beta"]
    inputs, params = case["inputs"], case["params"]
    gravity = representation_gravity(*(_tensor(inputs[k]) for k in ("logits_original", "logits_at_t1", "labels")))
    _close(gravity, case["outputs"]["I_con"], case)
    for t, expected in case["outputs"]["tau"].items():
        _close(retain_mask(gravity, beta=params["beta"], t=int(t), t1=params["t1"]), expected, case)


def test_recorded_gravity_of_sequences() -> None:
    case = CASES["sequence_losses"]
    gravity = representation_gravity(
        *(_tensor(case["inputs"][k]) for k in ("logits_original", "logits_at_t1", "labels"))
    )
    _close(gravity, case["outputs"]["I_con"], case)


@pytest.mark.parametrize("name", TOPS)
def test_recorded_top_fractions(name: str) -> None:
    case = CASES[name]
    gravity = _tensor(case["inputs"]["I_con"])
    beta = gravity_threshold(gravity, top_fraction=case["params"]["top_fraction"])
    _close(beta, case["outputs"]["beta"], case)
    mask = retain_mask(gravity, beta=float(beta))
    assert (mask == 0).nonzero().flatten().tolist() == case["outputs"]["dropped"]


@pytest.mark.parametrize("name", GROUPS)
def test_recorded_groups(name: str) -> None:
    case = CASES[name]
    gravity, labels = _tensor(case["inputs"]["I_con"]), _tensor(case["inputs"]["labels"])
    groups, scores = gravity_by_label(gravity, labels)
    assert groups.tolist() == case["outputs"]["groups"]
    _close(scores, case["outputs"]["group_scores"], case)
    mask = retain_mask_by_label(gravity, labels, num_groups=case["params"]["n_hidden_groups"])
    _close(mask, case["outputs"]["tau"], case)


@pytest.mark.parametrize("name", STEPS)
def test_recorded_steps(name: str) -> None:
    case = CASES[name]
    inputs, outputs = case["inputs"], case["outputs"]
    retain = _tensor(inputs["retain_logits"]).requires_grad_()
    forget = _tensor(inputs["forget_logits"]).double().reshape(-1, retain.shape[-1]).requires_grad_()
    labels = _tensor(inputs["forget_labels"]).long(), _tensor(inputs["retain_labels"])
    losses = tarf_loss(forget, labels[0], retain, labels[1], _tensor(inputs["tau"]), k_t=case["params"]["k_t"])
    for key, recorded in (("forget", "forget_loss"), ("retain", "retain_loss"), ("total", "loss")):
        _close(losses[key], outputs[recorded], case)
    gradients = torch.autograd.grad(losses["total"], (forget, retain), allow_unused=True)
    for gradient, leaf, key in zip(gradients, (forget, retain), ("forget", "retain"), strict=True):
        expected = torch.tensor(outputs[f"grad_{key}_logits"], dtype=torch.float64).reshape(leaf.shape)
        _close(torch.zeros_like(leaf) if gradient is None else gradient, expected.tolist(), case) if len(
            leaf
        ) else None


def test_recorded_gap_and_attack() -> None:
    case = CASES["gap"]
    _close(
        unlearning_gap(*(_tensor(case["inputs"][k]) for k in ("method", "retrained"))), case["outputs"]["gap"], case
    )
    case = CASES["mia_threshold"]
    threshold, outside = confidence_attack(
        *(_tensor(case["inputs"][k]) for k in ("member_conf", "nonmember_conf", "target_conf"))
    )
    _close(threshold, case["outputs"]["threshold"], case)
    _close(outside, case["outputs"]["mia"], case)


# ------------------------------------------------------------------------------------------------ schedule
@settings(max_examples=50, deadline=None)
@given(T=st.floats(1, 50), share=st.floats(0, 1), k=st.floats(0.01, 2), t=st.floats(0, 50))
def test_the_weight_falls_to_zero_and_rules_the_phase(T: float, share: float, k: float, t: float) -> None:
    t0 = share * T
    weight = annealed_ascent_weight(t, k=k, T=T, t0=t0)
    assert 0 <= weight <= annealed_ascent_weight(0, k=k, T=T, t0=t0) <= k * (1 + 1e-12)
    assert weight >= annealed_ascent_weight(t + 1, k=k, T=T, t0=t0)
    assert (weight > 0) == (tarf_phase(t, T=T, t0=t0, t1=0) == "II") or weight < 1e-300


def test_no_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="T: found 0"):
        annealed_ascent_weight(0, k=1, T=0, t0=0)


# ------------------------------------------------------------------------------------------------ identification
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 40), hundredths=st.integers(1, 100))
def test_the_threshold_drops_exactly_the_top(seed: int, size: int, hundredths: int) -> None:
    gravity = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    beta = float(gravity_threshold(gravity, top_fraction=hundredths / 100))
    dropped = retain_mask(gravity, beta=beta) == 0
    assert dropped.sum() == -(-hundredths * size // 100)
    if not dropped.all():
        assert gravity[dropped].min() > gravity[~dropped].max()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), groups=st.integers(1, 6))
def test_groups_are_dropped_whole_whatever_their_order(seed: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(groups), torch.randint(groups, (20,), generator=generator)]) * 7 - 3
    gravity = torch.rand(len(labels), generator=generator)
    for number in range(groups + 1):
        mask = retain_mask_by_label(gravity, labels, num_groups=number)
        dropped = labels[mask == 0].unique()
        assert len(dropped) == number and not torch.isin(labels[mask == 1], dropped).any()
        order = torch.randperm(len(labels), generator=generator)
        assert torch.equal(retain_mask_by_label(gravity[order], labels[order], num_groups=number), mask[order])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.sampled_from([1e-3, 0.5, 40.0]))
def test_relative_gravity_does_not_see_how_well_a_label_is_fitted(seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (20,), generator=generator) * 5 - 2
    gravity, losses = torch.rand(2, 20, generator=generator, dtype=torch.float64)
    found = relative_gravity(gravity, losses, labels)
    scale = torch.where(labels == labels[0], factor, 1.0)
    torch.testing.assert_close(relative_gravity(gravity * scale, losses * scale, labels), found)
    one = labels == labels[0]
    torch.testing.assert_close(found[one], gravity[one] * one.sum() / losses[one].sum())


def test_relative_gravity_without_any_loss_is_finite() -> None:
    found = relative_gravity(torch.tensor([0.0, 1e-7]), torch.zeros(2), torch.tensor([3, 3]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.1]))


def test_equal_means_drop_the_lower_label() -> None:
    assert retain_mask_by_label(torch.ones(4), torch.tensor([2, 1, 0, 1]), num_groups=1).tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gravity_threshold(torch.rand(3), top_fraction=0), r"top_fraction: found 0, allowed .* \(0, 1\]"),
        (lambda: gravity_threshold(torch.rand(0), top_fraction=0.1), r"gravity: found shape \(0,\)"),
        (lambda: retain_mask_by_label(torch.rand(3), torch.arange(3), num_groups=4), "num_groups: found 4, allowed"),
        (
            lambda: representation_gravity(torch.rand(3, 2), torch.rand(3, 2), torch.zeros(2, dtype=torch.int64)),
            r"labels: found torch.int64 of shape \(2,\) for logits of shape \(3, 2\)",
        ),
        (lambda: npo_loss(torch.rand(2), torch.rand(2), beta=0), "beta: found 0"),
        (lambda: unlearning_gap(torch.rand(4), torch.rand(3)), r"retrained: found shape \(3,\)"),
        (lambda: confidence_attack(torch.rand(3), torch.rand(0), torch.rand(1)), "nonmember_conf: found shape"),
    ],
)
def test_wrong_inputs_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------------------ losses
def _batch(seed: int = 0, **kind: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    forget, retain = (torch.randn(n, 4, generator=generator, dtype=torch.float64).to(**kind) for n in (3, 5))
    labels = torch.randint(4, (3,), generator=generator), torch.randint(4, (5,), generator=generator)
    return forget, labels[0], retain, labels[1], torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])


def test_gradients() -> None:
    forget, forget_labels, retain, retain_labels, mask = _batch()

    def total(f: Tensor, r: Tensor) -> Tensor:
        return tarf_loss(f, forget_labels, r, retain_labels, mask.double(), k_t=0.3)["total"]

    assert torch.autograd.gradcheck(total, (forget.requires_grad_(), retain.requires_grad_()))
    losses = torch.rand(4, dtype=torch.float64, requires_grad=True)
    original = torch.rand(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: npo_loss(x, original, beta=0.5), (losses,))


def test_a_step_up_the_forget_loss_lowers_the_total() -> None:
    forget, forget_labels, retain, retain_labels, mask = _batch()
    forget.requires_grad_()
    before = tarf_loss(forget, forget_labels, retain, retain_labels, mask, k_t=0.5)
    (gradient,) = torch.autograd.grad(before["total"], forget)
    after = tarf_loss(forget - 0.1 * gradient, forget_labels, retain, retain_labels, mask, k_t=0.5)
    assert after["forget"] > before["forget"]


def test_dropped_samples_count_in_the_mean_only() -> None:
    forget, forget_labels, retain, retain_labels, mask = _batch()
    losses = tarf_loss(forget, forget_labels, retain, retain_labels, mask, k_t=0.0)
    own = F.cross_entropy(retain, retain_labels, reduction="none")
    assert losses["retain"].item() == pytest.approx((own * mask).sum().item() / 5)
    retain[1, retain_labels[1]] = -math.inf  # of a dropped sample
    assert torch.isfinite(tarf_loss(forget, forget_labels, retain, retain_labels, mask, k_t=0.0)["total"])


def test_no_rows_give_zero() -> None:
    forget, forget_labels, retain, retain_labels, mask = _batch()
    losses = tarf_loss(forget, forget_labels, retain[:0], retain_labels[:0], mask[:0], k_t=1.0)
    assert losses["retain"] == 0 and losses["total"] == -losses["forget"]


def test_npo_is_ascent_for_a_small_beta_and_bounded() -> None:
    losses = torch.tensor([0.5, 2.0, 50.0], dtype=torch.float64, requires_grad=True)
    original = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(npo_loss(losses, original, beta=1e-6).sum(), losses)
    torch.testing.assert_close(gradient, -torch.ones(3, dtype=torch.float64), atol=1e-4, rtol=0)
    (gradient,) = torch.autograd.grad(npo_loss(losses, original, beta=1.0).sum(), losses)
    assert gradient[0] == -1 and -1e-9 < gradient[2] < 0
    formula = -2 / 0.3 * F.logsigmoid(-0.3 * (original - losses))
    torch.testing.assert_close(npo_loss(losses, original, beta=0.3), formula)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    batch = _batch(dtype=dtype)
    losses = tarf_loss(*batch, k_t=0.5)
    assert losses["total"].dtype == torch.float32
    expected = tarf_loss(batch[0].float(), batch[1], batch[2].float(), *batch[3:], k_t=0.5)
    assert losses["total"].item() == pytest.approx(expected["total"].item(), rel=1e-6)
    assert representation_gravity(batch[2], batch[2], batch[3]).dtype == torch.float32
    assert npo_loss(batch[2][0], batch[2][1]).dtype == torch.float32


# ------------------------------------------------------------------------------------------------ attack
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), members=st.integers(1, 12), others=st.integers(1, 12))
def test_the_threshold_is_the_lowest_of_the_best(seed: int, members: int, others: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inside, outside = (torch.randint(8, (n,), generator=generator) / 8 for n in (members, others))
    targets = torch.rand(9, generator=generator)
    scores = {}
    for candidate in torch.cat([inside, outside]).tolist():
        right = (int((inside >= candidate).sum()) * others, int((outside < candidate).sum()) * members)
        scores[candidate] = sum(right)
    best = min(candidate for candidate, score in scores.items() if score == max(scores.values()))
    threshold, share = confidence_attack(inside, outside, targets)
    assert threshold.item() == best
    assert share.item() == pytest.approx((targets < best).float().mean().item())


# ------------------------------------------------------------------------------------------------ saliency
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.01, 1))
def test_the_most_salient_weights_are_a_share_of_all(seed: int, size: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(size, 2, generator=generator), torch.randn(3, generator=generator)]
    masks = saliency_masks(gradients, share=share)
    assert [mask.shape for mask in masks] == [gradient.shape for gradient in gradients]
    chosen, sizes = torch.cat([mask.flatten() for mask in masks]), torch.cat([g.abs().flatten() for g in gradients])
    assert chosen.sum() == max(round(share * len(sizes)), 1)
    assert chosen.all() or sizes[chosen].min() > sizes[~chosen].max()


def test_of_weights_that_tie_no_more_are_taken_than_the_share() -> None:
    masks = saliency_masks([torch.zeros(3, 2), torch.tensor([0.0, 2.0])], share=0.5)
    assert masks[0].flatten().tolist() == [True] * 3 + [False] * 3 and masks[1].tolist() == [False, True]


def test_half_of_the_weights_by_hand() -> None:
    masks = saliency_masks([torch.tensor([[-4.0, 1.0]]), torch.tensor([2.0, 3.0])], share=0.5)
    assert masks[0].tolist() == [[True, False]] and masks[1].tolist() == [False, True]
    for share, gradients in ((0.0, [torch.ones(2)]), (1.5, [torch.ones(2)]), (0.5, [])):
        with pytest.raises(ValueError, match=f"share: found {share} of {len(gradients)} gradients"):
            saliency_masks(gradients, share=share)
