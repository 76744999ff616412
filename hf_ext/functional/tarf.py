r"""TARF, target-aware forgetting: unlearning a concept that label and data at hand do not coincide with.

Zhu et al., "Decoupling the Class Label and the Target Concept in Machine Unlearning", ICLR 2026,
https://arxiv.org/abs/2406.08288. Written from the equations in public summaries, whose numbers are not known but for
Eq. 3; the authors' code was not available.

| symbol | argument | |
|---|---|---|
| `D_f`, `D_un` | `forget_...`, `retain_...` | data to forget; remaining data, which may hide more of the concept |
| `l` | `losses` | cross-entropy of a sample |
| `t`, `T`, `t0`, `t1` | the same | time and length of the training in epochs; see `tarf_phase` |
| `k`, `k(t)` | `k`, `k_t` | strength of the ascent, its weight at time t |
| `I_con` | `gravity` | "representation gravity" of a remaining sample |
| `beta`, `tau` | `beta`, `retain_mask` | threshold of gravity; 1 for remaining samples that are retained, else 0 |

| equation | function |
|---|---|
| Eq. 3: `L(t) = -k(t) mean_{D_f} l + 1/|D_un| sum_{D_un} tau l` | `tarf_objective`; of logits, `tarf_loss` |
| `k(t) = max(k (T - t - t0) / T, 0)` | `annealed_ascent_weight` |
| the three phases | `tarf_phase` |
| `I_con = |l(f_original(x), y) - l(f_t1(x), y)|` | `loss_gravity`; of logits, `representation_gravity` |
| beta of the top fraction, and how many that is | `gravity_threshold`, `num_in_top` |
| `tau = 1(t >= t1, I_con < beta)` | `tarf_phase` and `retain_mask`; by classes, `retain_mask_by_label` |
| the gap to retraining, MIA | `unlearning_gap`, `confidence_attack` |
| NPO: Zhang et al., 2024, Eq. 3; SalUn: Fan et al., ICLR 2024, Eq. 3 | `npo_loss`, `saliency_masks` |
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32
from hf_ext.functional.losses import per_sample_losses

__all__ = [
    "annealed_ascent_weight",
    "confidence_attack",
    "gravity_by_label",
    "gravity_threshold",
    "loss_gravity",
    "npo_loss",
    "num_in_top",
    "relative_gravity",
    "representation_gravity",
    "retain_mask",
    "retain_mask_by_label",
    "saliency_masks",
    "tarf_loss",
    "tarf_objective",
    "tarf_phase",
    "unlearning_gap",
]


# ------------------------------------------------------------------------------------------------ schedule
def annealed_ascent_weight(t: float, *, k: float, T: float, t0: float) -> float:
    r"""`k(t) = max(k (T - t - t0) / T, 0)`: falls from `k (T - t0) / T` at t = 0 to zero at t = T - t0.

    The paper's text calls t0 the end of active forgetting; in the formula, which is followed here, it is the length of
    the part without ascent at the end.

    Args:
        t: time in epochs, may be fractional.
        k: strength.
        T: number of epochs, > 0.
        t0: epochs without ascent at the end.

    Raises:
        ValueError: T is not positive.
    """
    if T <= 0:
        raise ValueError(f"T: found {T!r}, allowed are numbers > 0")
    return max(k * (T - t - t0) / T, 0.0)


def tarf_phase(t: float, *, T: float, t0: float, t1: float) -> Literal["I", "II", "III", "idle"]:
    """Which terms are active at time t.

    `"I"` identification, ascent only (t < t1 and k(t) > 0); `"II"` separation, both; `"III"` approximation of
    retraining, retaining only; `"idle"` neither, which a configuration with t1 > T - t0 runs into.
    """
    ascends, retains = T - t - t0 > 0, t >= t1
    if ascends:
        return "II" if retains else "I"
    return "III" if retains else "idle"


# ------------------------------------------------------------------------------------------------ identification
def loss_gravity(original_losses: Tensor, losses: Tensor) -> Tensor:
    r"""`I_con = |l_original - l_t1|`: how far the ascent on D_f has carried a sample along.

    Args:
        original_losses: `[N]`, of the model before unlearning.
        losses: `[N]`, of the model at the end of phase I.

    Returns:
        `[N]`, at least float32.
    """
    return (at_least_float32(original_losses) - at_least_float32(losses)).abs()


def representation_gravity(logits_original: Tensor, logits_at_t1: Tensor, labels: Tensor) -> Tensor:
    r"""`loss_gravity` of logits.

    Args:
        logits_original: `[N, C]`, or `[N, S, C]` for tokens, of the model before unlearning.
        logits_at_t1: of the same shape, of the model at the end of phase I.
        labels: int64 `[N]` or `[N, S]` (aligned with the logits; -100 is ignored, a sample's loss is the mean over
            the other positions).

    Returns:
        `[N]`, at least float32.

    Raises:
        ValueError: shapes that do not fit.
    """
    return loss_gravity(per_sample_losses(logits_original, labels), per_sample_losses(logits_at_t1, labels))


def relative_gravity(gravity: Tensor, original_losses: Tensor, labels: Tensor, *, eps: float = 1e-6) -> Tensor:
    r"""`I_con(x) / mean l_original` over the samples of x's label: how far, against how far it can be carried at all.

    A small step of ascent moves a loss by the product of two gradients. That of l(x) with respect to the logits is as
    long as 1 - p(y | x), which is about l(x) where that is small: by I_con alone, badly fitted labels rank before near
    ones. Not in the paper.

    Args:
        gravity: I_con, `[N]`.
        original_losses: of the original model, `[N]`.
        labels: int64 `[N]`, any values.
        eps: mean losses below are taken for it: they are rounding.

    Returns:
        `[N]`, in gravity's dtype.
    """
    groups, means = gravity_by_label(original_losses.to(gravity.dtype), labels)
    return gravity / means.clamp(min=eps)[torch.searchsorted(groups, labels)]


def gravity_threshold(gravity: Tensor, *, top_fraction: float) -> Tensor:
    r"""beta: the lowest value among the `ceil(top_fraction * N)` largest of I_con.

    Args:
        gravity: `[N]`, N > 0.
        top_fraction: in (0, 1].

    Raises:
        ValueError: nothing to rank, or a fraction out of range.
    """
    if not 0 < top_fraction <= 1:
        raise ValueError(f"top_fraction: found {top_fraction!r}, allowed are numbers in (0, 1]")
    if gravity.ndim != 1 or len(gravity) == 0:
        raise ValueError(f"gravity: found shape {tuple(gravity.shape)}, allowed is [N] with N > 0")
    return gravity.topk(num_in_top(len(gravity), top_fraction=top_fraction)).values[-1]


def num_in_top(size: int, *, top_fraction: float) -> int:
    """`ceil(top_fraction * N)` of N samples or groups, at least 1: how many the threshold of a share leaves out."""
    # rounded first: 0.07 * 100 is a little more than 7
    return max(math.ceil(round(top_fraction * size, 9)), 1)


def retain_mask(gravity: Tensor, *, beta: float, t: float | None = None, t1: float | None = None) -> Tensor:
    r"""tau: 1 where a remaining sample is retained, `I_con < beta` and `t >= t1`; 0 elsewhere.

    The paper leaves `I_con = beta` open; it is dropped, so that the threshold of the top 10 % drops just these.

    Args:
        gravity: `[N]`.
        beta: threshold.
        t, t1: time and the start of retaining; without both, t >= t1 is taken for granted.

    Returns:
        `[N]` of zeros and ones in gravity's dtype.
    """
    if t is not None and t1 is not None and t < t1:
        return torch.zeros_like(gravity)
    return (gravity < beta).to(gravity.dtype)


def gravity_by_label(gravity: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels that occur, ascending, `[G]`, and the mean of I_con over the samples of each, `[G]`."""
    groups, inverse = labels.unique(return_inverse=True)
    zeros = torch.zeros(len(groups), dtype=gravity.dtype, device=gravity.device)
    sums = zeros.index_add(0, inverse, gravity)
    return groups, sums / zeros.index_add(0, inverse, torch.ones_like(gravity))


def retain_mask_by_label(gravity: Tensor, labels: Tensor, *, num_groups: int) -> Tensor:
    r"""tau by whole classes: 0 for all samples of the `num_groups` labels with the largest mean I_con.

    Args:
        gravity: `[N]`.
        labels: int64 `[N]`, any values.
        num_groups: how many labels of the remaining data belong to the concept; of equal means the lower label goes
            first.

    Returns:
        `[N]` of zeros and ones in gravity's dtype.

    Raises:
        ValueError: more groups than there are.
    """
    groups, scores = gravity_by_label(gravity, labels)
    if not 0 <= num_groups <= len(groups):
        raise ValueError(f"num_groups: found {num_groups}, allowed are 0 to {len(groups)}, the labels that occur")
    dropped = groups[scores.argsort(descending=True, stable=True)[:num_groups]]
    return (~torch.isin(labels, dropped)).to(gravity.dtype)


# ------------------------------------------------------------------------------------------------ losses
def tarf_objective(
    forget_values: Tensor | None,
    retain_losses: Tensor | None,
    retain_mask: Tensor | None = None,
    *,
    k_t: float,
    forget_rows: Tensor | int | None = None,
    retain_rows: Tensor | int | None = None,
) -> dict[str, Tensor]:
    r"""Eq. 3, `k_t / |D_f| sum v + 1/|D_un| sum tau l`, of a batch or of a part of one.

    Args:
        forget_values: v, `[M]`, what is minimised on data to forget, `-l` in the paper; None for a part without.
        retain_losses: l, `[N]`; None for a part without.
        retain_mask: tau, `[N]`; by default all are retained.
        k_t: weight of the ascent.
        forget_rows, retain_rows: `|D_f|` and `|D_un|`, the rows of all that this is a part of (micro-batches,
            processes), dropped ones included: the parts' results then add up to the whole's. By default M and N.

    Returns:
        Scalars `"forget"` (the mean of v), `"retain"` and `"total"`; a term without rows is 0.

    Raises:
        ValueError: neither of the two.
    """
    part = forget_values if retain_losses is None else retain_losses
    if part is None:
        raise ValueError("forget_values, retain_losses: found neither, allowed are one or both")
    values = part.new_zeros(0) if forget_values is None else forget_values
    losses = part.new_zeros(0) if retain_losses is None else retain_losses
    if retain_mask is not None:  # where, not a product: a dropped sample's loss may be infinite
        losses = torch.where(retain_mask > 0, losses, 0.0)
    forget = values.sum() / (max(len(values), 1) if forget_rows is None else forget_rows)
    retain = losses.sum() / (max(len(losses), 1) if retain_rows is None else retain_rows)
    # a term of weight zero may be infinite, too
    return {"forget": forget, "retain": retain, "total": k_t * forget + retain if k_t else retain}


def tarf_loss(
    forget_logits: Tensor,
    forget_labels: Tensor,
    retain_logits: Tensor,
    retain_labels: Tensor,
    retain_mask: Tensor,
    *,
    k_t: float,
) -> dict[str, Tensor]:
    r"""`tarf_objective` of the logits of one batch, `total = -k_t * mean l(forget) + sum(tau * l(retain)) / N`.

    Args:
        forget_logits: `[M, C]` or `[M, S, C]`.
        forget_labels: int64 `[M]` or `[M, S]`.
        retain_logits: `[N, C]` or `[N, S, C]`.
        retain_labels: int64 `[N]` or `[N, S]`.
        retain_mask: tau, `[N]`.
        k_t: weight of the ascent.

    Returns:
        Scalars `"forget"` (the mean loss, not negated), `"retain"`, `"total"`.

    Raises:
        ValueError: shapes that do not fit.
    """
    forget_losses = per_sample_losses(forget_logits, forget_labels)
    retain_losses = per_sample_losses(retain_logits, retain_labels)
    terms = tarf_objective(-forget_losses, retain_losses, retain_mask, k_t=k_t)
    return {**terms, "forget": -terms["forget"]}


def npo_loss(losses: Tensor, original_losses: Tensor, *, beta: float = 0.1) -> Tensor:
    r"""Negative preference optimisation per sample, `-2/beta log sigmoid(-beta log(p / p_original))`.

    A bounded alternative to ascent (Zhang et al., 2024, https://arxiv.org/abs/2404.05868): the smaller the sample's
    probability already is against the original model's, the less it is pushed.

    Args:
        losses: `[N]`, negative log-probabilities `-log p` of whole samples.
        original_losses: `[N]`, of the original model.
        beta: > 0; towards 0 this becomes ascent.

    Returns:
        `[N]`, to be minimised.

    Raises:
        ValueError: beta is not positive.
    """
    if beta <= 0:
        raise ValueError(f"beta: found {beta!r}, allowed are numbers > 0")
    return 2 / beta * F.softplus(beta * (at_least_float32(original_losses) - at_least_float32(losses)))


def saliency_masks(gradients: Sequence[Tensor], *, share: float) -> list[Tensor]:
    r"""Weight saliency of SalUn (Fan et al., ICLR 2024, https://arxiv.org/abs/2310.12508, Eq. 3), `1(|g| >= gamma)`.

    Args:
        gradients: of the loss on the data to forget, by parameter, at the original weights.
        share: of all weights, those with the largest gradients, that may change; gamma follows from it.

    Returns:
        Boolean masks of the gradients' shapes, exactly that share of all: of the weights that tie with gamma (often at
        zero, in units that the data to forget do not excite) the first ones are taken.

    Raises:
        ValueError: no gradients, or a share outside (0, 1].
    """
    if not gradients or not 0 < share <= 1:
        raise ValueError(
            f"share: found {share!r} of {len(gradients)} gradients, allowed are numbers in (0, 1] of some"
        )
    sizes = torch.cat([at_least_float32(gradient).abs().flatten() for gradient in gradients])
    taken = max(round(share * len(sizes)), 1)
    gamma = sizes.kthvalue(len(sizes) - taken + 1).values
    salient = sizes > gamma
    salient[(sizes == gamma).nonzero().flatten()[: taken - int(salient.sum())]] = True
    parts = salient.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


# ------------------------------------------------------------------------------------------------ evaluation
def unlearning_gap(metrics: Tensor, retrained: Tensor) -> Tensor:
    """Mean of the absolute differences of (UA, RA, TA, MIA) to those of the model retrained without the concept.

    Args:
        metrics, retrained: `[4]`, in one unit.

    Raises:
        ValueError: shapes that differ.
    """
    metrics, retrained = torch.as_tensor(metrics), torch.as_tensor(retrained)
    if metrics.shape != retrained.shape:
        raise ValueError(
            f"retrained: found shape {tuple(retrained.shape)}, allowed is that of metrics, {tuple(metrics.shape)}"
        )
    return (at_least_float32(metrics) - at_least_float32(retrained)).abs().mean()


def confidence_attack(member_conf: Tensor, nonmember_conf: Tensor, target_conf: Tensor) -> tuple[Tensor, Tensor]:
    r"""Membership inference by one threshold on the confidence in the true label.

    A sample is called a member if its confidence is at least the threshold: the lowest of all members' and
    non-members' confidences that maximises balanced accuracy on these two sets.

    Args:
        member_conf: `[M]`, of samples that were trained on.
        nonmember_conf: `[N]`, of samples that were not.
        target_conf: `[K]`, of the samples in question; no part of the two above.

    Returns:
        The threshold and the share of targets called NON-member (1 if they look as if never trained on), scalars.

    Raises:
        ValueError: an empty set.
    """
    for name, values in (("member", member_conf), ("nonmember", nonmember_conf), ("target", target_conf)):
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(f"{name}_conf: found shape {tuple(values.shape)}, allowed is [N] with N > 0")
    member_conf, nonmember_conf = at_least_float32(member_conf), at_least_float32(nonmember_conf)
    candidates = torch.cat([member_conf, nonmember_conf]).unique()  # ascending
    called_out = [torch.searchsorted(part.sort().values, candidates) for part in (member_conf, nonmember_conf)]
    # as whole numbers: of equally good thresholds rounding must not pick one
    score = called_out[1] * len(member_conf) - called_out[0] * len(nonmember_conf)
    threshold = candidates[int((score == score.max()).nonzero()[0])]
    outside = (at_least_float32(target_conf) < threshold).to(threshold.dtype).mean()
    return threshold, outside
