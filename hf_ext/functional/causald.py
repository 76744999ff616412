r"""CausalD, causal distillation: a front-door adjusted ensemble of recommenders taught to one student.

Zhang et al., "Causal Distillation for Alleviating Performance Heterogeneity in Recommender Systems", IEEE TKDE,
https://arxiv.org/abs/2405.20626. Neither the paper's full text nor its code could be had: written from the abstract,
public summaries and the textbook's front-door adjustment.

| symbol | argument | |
|---|---|---|
| `s_t(m_t, x'_k, c)` | `scores` | of teacher t for candidate c: x's mediator, and history k of a bank |
| `w_t`, `pi_k` | `teacher_weights`, `prior` | of the teachers and of the bank's histories, each normalised to 1 |
| `e` | `effect_logits` | the effect of doing x, as logits over the candidates |
| `z`, `y` | `student_logits`, `labels` | of the student; what the user chose |
| `alpha`, `tau` | the same, `temperature` | share of the distillation; its temperature |

| equation (no numbers) | function |
|---|---|
| `P(y \| do(x)) = sum_m P(m \| x) sum_x' P(x') P(y \| m, x')`, T mediators, K histories | `front_door_effect` |
| the same sum, a part of it at a time | `FrontDoorSum` |
| `L = (1 - alpha) L_rec + alpha tau^2 KL(P_e^tau \|\| P_z^tau)` [the convex form is ours] | `causald_loss` |
| `(1 / count)^power`, weights of rows by their target's popularity (not of the paper) | `inverse_propensity_weights` |
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32
from hf_ext.functional._words import check_word

__all__ = ["FrontDoorSum", "causald_loss", "front_door_effect", "inverse_propensity_weights"]

#: what a candidate's score is: the logit of a yes or no, or one of a softmax over the candidates
Kind = Literal["bce", "softmax"]
#: what is averaged: probabilities, or logits (the normalised weighted geometric mean)
Average = Literal["probability", "logit"]
Reduction = Literal["mean", "none"]


# ------------------------------------------------------------------------------------------------ effect
class FrontDoorSum:
    r"""The front-door sum, added up part by part: what has been added needs no memory.

    The effect is given as logits. With "probability" it is `log sum w softmax(s)`, or the logit of
    `sum w sigmoid(s)` as the difference of two logarithms of sums, which is exact where the probability is 1 to
    rounding; with "logit" it is `sum w s`, for "softmax" its `log_softmax`.

    Args:
        kind: "bce" or "softmax".
        average: "probability" or "logit".

    Raises:
        ValueError: other words.
    """

    def __init__(self, kind: Kind = "bce", average: Average = "probability") -> None:
        check_word("kind", kind, Kind)
        check_word("average", average, Average)
        self.kind, self.average = kind, average
        self._sums: tuple[Tensor, ...] | None = None
        self._weight = torch.zeros(())

    def add(self, scores: Tensor, weight: float | Tensor = 1.0) -> None:
        """Add what one teacher says with one history of the bank, or with several.

        Args:
            scores: `[B, C]`, or `[N, B, C]` for N at once.
            weight: >= 0; a number, or a tensor that broadcasts to `scores.shape[:-1]`: `[B]`, `[N, 1]`, `[N, B]`. All
                weights together need not sum to 1. What has weight 0 has no influence, be its score infinite.

        Raises:
            ValueError: NaN among the scores; weights that are negative or not finite; shapes that do not fit each
                other or what was added before.
        """
        scores = at_least_float32(scores)
        weight = self._checked(scores, torch.as_tensor(weight, dtype=scores.dtype, device=scores.device))
        if scores.ndim == 2:
            scores, weight = scores[None], weight[None]
        weight = weight[..., None]
        counts = weight > 0
        # neither 0 * inf nor log 0 may arise, not even in a gradient that `where` drops
        scores = torch.where(counts, scores, 0.0)
        sums: tuple[Tensor, ...]
        if self.average == "logit":
            sums = ((weight * scores).sum(0),)
        else:
            log_weight = torch.where(counts, weight, 1.0).log()
            parts = (scores.log_softmax(-1),) if self.kind == "softmax" else _log_bernoulli(scores)
            sums = tuple(_masked_logsumexp(log_weight + part, counts) for part in parts)
        self._join(sums, weight.sum(0))

    def _checked(self, scores: Tensor, weight: Tensor) -> Tensor:
        """The weight in the shape of the scores without candidates."""
        _check_weights("weight", weight)
        if scores.ndim not in (2, 3) or not all(scores.shape):
            raise ValueError(
                f"scores: found shape {tuple(scores.shape)}, allowed are [B, C] and [N, B, C], none of them 0"
            )
        if self._sums is not None and self._sums[0].shape != scores.shape[-2:]:
            raise ValueError(
                f"scores: found shape {tuple(scores.shape)}, allowed is what was added before, "
                f"{list(self._sums[0].shape)}"
            )
        if scores.isnan().any():
            raise ValueError("scores: found NaN, allowed are numbers")
        try:
            return weight.expand(scores.shape[:-1])
        except RuntimeError:
            raise ValueError(
                f"weight: found shape {tuple(weight.shape)}, allowed are those that broadcast to "
                f"{list(scores.shape[:-1])}"
            ) from None

    def _join(self, sums: tuple[Tensor, ...], weight: Tensor) -> None:
        if self._sums is None:
            self._sums, self._weight = sums, weight
            return
        if self.average == "logit":
            self._sums = tuple(old + new for old, new in zip(self._sums, sums, strict=True))
        else:
            self._sums = tuple(_logaddexp(old, new) for old, new in zip(self._sums, sums, strict=True))
        self._weight = self._weight + weight

    def effect(self) -> Tensor:
        """The effect of what has been added, its weights normalised to 1: logits `[B, C]`, at least float32.

        Raises:
            ValueError: nothing was added, a row's weights are all 0, or scores are infinite so that their average is
                undefined, as that of a softmax with infinity is.
        """
        if self._sums is None or not (self._weight > 0).all():
            raise ValueError(
                "weight: found a row without a weight above 0, allowed are weights of which one at least is"
            )
        effect = self._mean(self._sums)
        if effect.isnan().any():
            raise ValueError("scores: found infinite ones whose average is undefined, allowed are finite numbers")
        return effect

    def _mean(self, sums: tuple[Tensor, ...]) -> Tensor:
        if self.average == "logit":
            mean = sums[0] / self._weight
            return mean.log_softmax(-1) if self.kind == "softmax" else mean
        return sums[0] - (self._weight.log() if self.kind == "softmax" else sums[1])


def _log_bernoulli(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities of yes and no."""
    return F.logsigmoid(scores), F.logsigmoid(-scores)


def _masked_logsumexp(values: Tensor, counted: Tensor) -> Tensor:
    """Over the first dimension, of what is counted; -inf where nothing is."""
    return values.masked_fill(~counted, -math.inf).logsumexp(0)


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """Of two that may both be -inf, whose gradient would be NaN."""
    nothing = (a == -math.inf) & (b == -math.inf)
    return torch.where(nothing, a, torch.logaddexp(torch.where(nothing, 0.0, a), b))


def _check_weights(name: str, weights: Tensor) -> None:
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError(f"{name}: found {weights.tolist()}, allowed are finite numbers >= 0")


def front_door_effect(
    scores: Tensor,
    *,
    teacher_weights: Tensor | None = None,
    prior: Tensor | None = None,
    average: Average = "probability",
    kind: Kind = "bce",
) -> Tensor:
    r"""The expectation of the teachers' predictions over mediators (teachers) and the prior of histories (the bank).

    Args:
        scores: `[T, B, K, C]`; or `[T, B, C]`, without a bank, a plain ensemble.
        teacher_weights: `[T]`, or `[T, B]` for weights that differ by row; >= 0, normalised to 1 here; None: uniform.
        prior: `[K]`, likewise.
        average: "probability", or "logit": the normalised weighted geometric mean, which for scores linear in the
            history is one pass at the mean history.
        kind: "bce" or "softmax".

    Returns:
        Logits of the effect, `[B, C]`, at least float32: its probabilities are their sigmoid, or their softmax (of
        "softmax" they are log probabilities already). Differentiable. A weight of 0 is as if that teacher or history
        were not there.

    Raises:
        ValueError: NaN among the scores; weights that are negative, not finite or, of a row, all 0; shapes that do not
            fit; unknown words.
    """
    total = FrontDoorSum(kind, average)
    scores = at_least_float32(scores)
    if scores.ndim not in (3, 4) or not all(scores.shape):
        raise ValueError(
            f"scores: found shape {tuple(scores.shape)}, allowed are [T, B, K, C] and [T, B, C], none of them 0"
        )
    banked = scores if scores.ndim == 4 else scores.unsqueeze(2)
    teachers, rows, histories, _ = banked.shape
    by_teacher = _normalised("teacher_weights", teacher_weights, [(teachers,), (teachers, rows)], scores)
    by_history = _normalised("prior", prior, [(histories,)], scores)
    for own, weight in zip(banked, by_teacher, strict=True):
        total.add(own.transpose(0, 1), by_history[:, None] * weight)
    return total.effect()


def _normalised(name: str, weights: Tensor | None, shapes: list[tuple[int, ...]], like: Tensor) -> Tensor:
    """Weights that sum to 1 over the first dimension, in the scores' dtype."""
    if weights is None:
        return like.new_full(shapes[0], 1 / shapes[0][0])
    weights = torch.as_tensor(weights, dtype=like.dtype, device=like.device)
    if weights.shape not in shapes:
        raise ValueError(
            f"{name}: found shape {tuple(weights.shape)}, allowed are {', '.join(map(str, map(list, shapes)))}"
        )
    _check_weights(name, weights)
    if not (weights > 0).any(0).all():
        raise ValueError(f"{name}: found weights that are all 0, allowed are weights of which one at least is above 0")
    return weights / weights.sum(0)


# ------------------------------------------------------------------------------------------------ loss
def causald_loss(
    student_logits: Tensor,
    labels: Tensor,
    effect_logits: Tensor,
    *,
    alpha: float,
    temperature: float,
    kind: Kind = "bce",
    reduction: Reduction = "mean",
) -> dict[str, Tensor]:
    r"""`(1 - alpha) L_rec + alpha tau^2 KL(P_e^tau || P_z^tau)`; no gradient goes to the effect.

    Args:
        student_logits: z, `[B, C]`, of the same candidates as the effect in the same order.
        labels: for "bce" 0 or 1, `[B, C]`; for "softmax" the place of the positive among the candidates, int `[B]`.
        effect_logits: e, `[B, C]`.
        alpha: in [0, 1]; 0 is the recommendation loss alone, 1 the distillation alone.
        temperature: tau > 0.
        kind: "bce": both terms are means over candidates; "softmax": over candidates they are those of a distribution.
        reduction: "mean" over rows, or "none".

    Returns:
        `"recommendation"`, `"distillation"` (without alpha and tau^2) and `"total"`, scalars or `[B]`, at least
        float32. A term whose weight is 0 is no part of the total's graph.

    Raises:
        ValueError: alpha or temperature out of their bounds; shapes that do not fit; unknown words; for "softmax",
            labels that are no integers or, on the CPU, no places among the candidates.
    """
    check_word("kind", kind, Kind)
    check_word("reduction", reduction, Reduction)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: found {alpha!r}, allowed are numbers in [0, 1]")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: found {temperature!r}, allowed are finite numbers > 0")
    if student_logits.ndim != 2 or student_logits.shape != effect_logits.shape or not all(student_logits.shape):
        raise ValueError(
            f"student_logits, effect_logits: found shapes {tuple(student_logits.shape)} and "
            f"{tuple(effect_logits.shape)}, allowed is [B, C] for both, B and C above 0"
        )
    student = at_least_float32(student_logits)
    effect = at_least_float32(effect_logits.detach())
    divergences = _divergences(effect / temperature, student / temperature, kind)
    terms = {
        "recommendation": _recommendation_loss(student, labels, kind, reduction),
        "distillation": divergences.mean() if reduction == "mean" else divergences,
    }
    weights = {"recommendation": 1 - alpha, "distillation": alpha * temperature**2}
    total = torch.stack([weights[name] * value for name, value in terms.items() if weights[name]]).sum(0)
    return {**terms, "total": total}


def _recommendation_loss(student: Tensor, labels: Tensor, kind: Kind, reduction: Reduction) -> Tensor:
    """The mean is torch's own, to the last bit that of a student without teachers."""
    if kind == "bce":
        if labels.shape != student.shape:
            raise ValueError(f"labels: found shape {tuple(labels.shape)}, allowed is {list(student.shape)} for 'bce'")
        losses = F.binary_cross_entropy_with_logits(student, labels.to(student.dtype), reduction=reduction)
        return losses.mean(-1) if reduction == "none" else losses
    if labels.shape != student.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels: found {labels.dtype} of shape {tuple(labels.shape)}, allowed are integers of shape "
            f"[{len(student)}] for 'softmax'"
        )
    # elsewhere the kernel refuses by itself, and to look would wait for the device in every step
    if labels.device.type == "cpu" and not ((labels >= 0) & (labels < student.shape[1])).all():
        raise ValueError(f"labels: found {labels.tolist()}, allowed are places in [0, {student.shape[1]})")
    return F.cross_entropy(student, labels.long(), reduction=reduction)


def _divergences(effect: Tensor, student: Tensor, kind: Kind) -> Tensor:
    """`KL(P_effect || P_student)` of every row; for "bce" the mean over the candidates."""
    if kind == "softmax":
        return _kl(effect.log_softmax(-1), student.log_softmax(-1)).sum(-1)
    pairs = zip(_log_bernoulli(effect), _log_bernoulli(student), strict=True)
    return torch.stack([_kl(p, q) for p, q in pairs]).sum(0).mean(-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`p (log p - log q)`, 0 where p is: a candidate that is masked on both sides would be 0 * (inf - inf)."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0)


# ------------------------------------------------------------------------------------------------ popularity
def inverse_propensity_weights(counts: Tensor, *, power: float = 0.5, clip: float = 10.0) -> Tensor:
    r"""Weights of rows against popularity: `(1 / count)^power`, clipped, of mean 1.

    Args:
        counts: `[N]`, how often each row's target occurs in the training data; >= 0, one at least above 0.
        power: >= 0; 0 is no weighting.
        clip: >= 1; no weight is larger than `clip` times the smallest one. A count of 0 gets this largest weight.

    Returns:
        `[N]`, at least float32.

    Raises:
        ValueError: any of these does not hold.
    """
    if not 0 <= power < math.inf:
        raise ValueError(f"power: found {power!r}, allowed are finite numbers >= 0")
    if not 1 <= clip < math.inf:
        raise ValueError(f"clip: found {clip!r}, allowed are finite numbers >= 1")
    counts = counts.to(torch.promote_types(counts.dtype, torch.float32))
    if counts.ndim != 1 or not len(counts):
        raise ValueError(f"counts: found shape {tuple(counts.shape)}, allowed is [N] with N > 0")
    if not (counts.isfinite() & (counts >= 0)).all() or not counts.any():
        raise ValueError("counts: found negative numbers, none above 0, or NaN, allowed are numbers >= 0, not all 0")
    weights = (counts.max() / counts).pow(power).clamp(max=clip)
    return weights / weights.mean()
