r"""Equations of TARF, target-aware forgetting: unlearning a concept that label and data at hand do not coincide with.

Zhu et al., "Decoupling the Class Label and the Target Concept in Machine Unlearning", ICLR 2026,
https://arxiv.org/abs/2406.08288. Written from the equations; the authors' code was not available.

Symbols: D_f the data to forget, D_un the remaining data (which may hide more of the concept), l the cross-entropy of a
sample, T the number of epochs, k(t) the weight of the ascent, tau in {0, 1} which remaining samples are retained,
I_con the "representation gravity". The objective at time t (Eq. 3) is

    L(t) = -k(t) mean_{D_f} l + 1/|D_un| sum_{D_un} tau l
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32

__all__ = [
    "annealed_ascent_weight",
    "confidence_attack",
    "gravity_by_label",
    "gravity_threshold",
    "npo_loss",
    "relative_gravity",
    "representation_gravity",
    "retain_mask",
    "retain_mask_by_label",
    "saliency_masks",
    "tarf_loss",
    "tarf_phase",
    "unlearning_gap",
]

_IGNORED_LABEL = -100


def _sample_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per sample; of a sequence, the mean over its labels other than -100 (0 without any)."""
    logits = at_least_float32(logits)
    if logits.shape[:-1] != labels.shape or logits.ndim not in (2, 3):
        raise ValueError(
            f"labels: found shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)}, "
            "allowed are [N] for [N, C] and [N, S] for [N, S, C]"
        )
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=_IGNORED_LABEL)
    if labels.ndim == 1:
        return losses
    return losses.view(labels.shape).sum(dim=1) / labels.ne(_IGNORED_LABEL).sum(dim=1).clamp(min=1)


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


def tarf_phase(t: float, *, T: float, t0: float, t1: float) -> str:
    """Which terms are active at time t.

    `"I"` identification, ascent only (t < t1 and k(t) > 0); `"II"` separation, both; `"III"` approximation of
    retraining, retaining only; `"idle"` neither, which a configuration with t1 > T - t0 runs into.
    """
    ascends, retains = T - t - t0 > 0, t >= t1
    return {(True, False): "I", (True, True): "II", (False, True): "III", (False, False): "idle"}[ascends, retains]


# ------------------------------------------------------------------------------------------------ identification
def representation_gravity(logits_original: Tensor, logits_at_t1: Tensor, labels: Tensor) -> Tensor:
    r"""`I_con = |l(f_original(x), y) - l(f_t1(x), y)|`: how far the ascent on D_f has carried a sample along.

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
    return (_sample_losses(logits_original, labels) - _sample_losses(logits_at_t1, labels)).abs()


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
    # rounded first: 0.07 * 100 is a little more than 7
    count = math.ceil(round(top_fraction * len(gravity), 9))
    return gravity.topk(max(count, 1)).values[-1]


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
def tarf_loss(
    forget_logits: Tensor,
    forget_labels: Tensor,
    retain_logits: Tensor,
    retain_labels: Tensor,
    retain_mask: Tensor,
    *,
    k_t: float,
) -> dict[str, Tensor]:
    r"""One batch of Eq. 3: `total = -k_t * mean l(forget) + sum(tau * l(retain)) / N`.

    The second term is divided by all N remaining samples of the batch, dropped ones included. Without forget rows the
    first term is 0, without remaining ones the second.

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
    forget_losses = _sample_losses(forget_logits, forget_labels)
    retain_losses = _sample_losses(retain_logits, retain_labels)
    forget = forget_losses.sum() / max(len(forget_losses), 1)
    # where, not a product: a dropped sample's loss may be infinite
    kept = torch.where(retain_mask > 0, retain_losses, 0.0) * retain_mask.detach()
    retain = kept.sum() / max(len(kept), 1)
    total = retain - k_t * forget if k_t else retain
    return {"forget": forget, "retain": retain, "total": total}


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
