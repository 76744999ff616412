r"""Learning from positive and unlabelled rows, of a graph or not: risks, the class prior, calibration to it.

| symbol | argument | |
|---|---|---|
| `P`, `U` | `positive_mask`, `unlabeled_mask` | known positives; unlabelled rows, all others by default |
| `s_i` | `scores` | logits; any numbers where only their order counts |
| `pi` | `prior` | share of positives in U, not in P and U together |

| equation | function |
|---|---|
| `pi mean_P l(s, 1) + [mean_U l(s, -1) - pi mean_P l(s, -1)]` (du Plessis et al. 2015) | `pu_risk` with `kind="upu"` |
| the same, its bracket not below -beta (Kiryo et al. 2017) | `pu_risk` with `kind="nnpu"` |
| `min_c Q_u(c) / Q_p(c)`, the best bin (Garg et al. 2021; GPL's equation 7) | `estimate_class_prior`, "bbe" |
| `pi = (n_l / mean_P g - n_l) / n_u`, `g = P(labelled \| x)` (Elkan and Noto 2008) | the same, "en" |
| b with `mean_U sigmoid(s + b) = pi` [ours] | `prior_offset` |
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32
from hf_ext.functional._words import check_word

__all__ = ["estimate_class_prior", "prior_offset", "pu_risk"]

SurrogateLoss = Literal["sigmoid", "logistic"]
RiskKind = Literal["nnpu", "upu"]
PriorMethod = Literal["bbe", "en"]

#: halvings of an interval, more than any dtype's digits
_HALVINGS = 100


# ------------------------------------------------------------------------------------------------ risk
def pu_risk(
    scores: Tensor,
    positive_mask: Tensor,
    unlabeled_mask: Tensor | None = None,
    *,
    prior: float,
    loss: SurrogateLoss = "sigmoid",
    kind: RiskKind = "nnpu",
    beta: float = 0.0,
    gamma: float = 1.0,
) -> dict[str, Tensor]:
    r"""The classification risk without a known negative.

    positive `= pi mean_P l(s, 1)`, negative `= mean_U l(s, -1) - pi mean_P l(s, -1)`, total their sum. Of "nnpu",
    where negative < -beta, the total has the value `positive - beta` and the gradient of `-gamma negative`. Without P
    it is `mean_U l(s, -1)`, without U positive alone.

    Args:
        scores: s, logits, `[N]`.
        positive_mask: P, bool `[N]`.
        unlabeled_mask: U, bool `[N]`; None: all that is not in P.
        prior: pi, in [0, 1].
        loss: "sigmoid", `l(s, t) = sigmoid(-t s)`; "logistic", `softplus(-t s)`.
        kind: "nnpu" or "upu".
        beta: >= 0.
        gamma: >= 0.

    Returns:
        Scalars `"positive"` and `"negative"`, as they are before the branch, and `"total"`, at least float32.
        Differentiable in the scores.

    Raises:
        ValueError: a prior out of its bounds; unknown words.
    """
    check_word("loss", loss, SurrogateLoss)
    check_word("kind", kind, RiskKind)
    _check_share("prior", prior)
    scores = at_least_float32(scores)
    unlabeled = ~positive_mask if unlabeled_mask is None else unlabeled_mask
    surrogate = torch.sigmoid if loss == "sigmoid" else F.softplus
    positive = prior * _mean(surrogate(-scores), positive_mask)
    negative = _mean(surrogate(scores), unlabeled) - prior * _mean(surrogate(scores), positive_mask)
    negative = torch.where(unlabeled.any(), negative, 0.0)
    total = positive + negative
    if kind == "nnpu":
        against = -gamma * negative
        against = against + (positive - beta - against).detach()
        total = torch.where(negative < -beta, against, total)
    return {"positive": positive, "negative": negative, "total": total}


def _check_share(name: str, value: float | Tensor, *, inside: bool = False) -> None:
    if not (0 < value < 1 if inside else 0 <= value <= 1):
        allowed = "(0, 1)" if inside else "[0, 1]"
        raise ValueError(f"{name}: found {float(value)!r}, allowed are numbers in {allowed}")


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over the mask, 0 of no rows."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


# ------------------------------------------------------------------------------------------------ prior
def estimate_class_prior(
    scores: Tensor,
    positive_mask: Tensor,
    unlabeled_mask: Tensor | None = None,
    *,
    method: PriorMethod = "bbe",
    delta: float = 0.1,
    gamma: float = 0.01,
    slack: bool = True,
    labeled_mask: Tensor | None = None,
) -> dict[str, Tensor | None]:
    r"""The share of positives among the unlabelled, from scores; best of positives that were held out of training.

    "bbe": Q(c) is the share of rows that score at least c. Over the distinct scores c with Q_p > 0, the least of
    `[Q_u + (1 + gamma) (sqrt(ln(4 / delta) / 2 n_u) + sqrt(ln(4 / delta) / 2 n_p))] / Q_p`; the prior is Q_u / Q_p
    there. It depends on the scores' order alone. "en": from `c = mean_P g`, of the rows outside of P and L the number
    `n_l / c` of positives less those known.

    Args:
        scores: `[N]`; for "en" probabilities of being labelled.
        positive_mask: P, bool `[N]`, positives like those among U.
        unlabeled_mask: U, bool `[N]`; None: all that is not in P.
        method: "bbe" or "en".
        delta, gamma: of "bbe", delta in (0, 1).
        slack: without it "bbe" is `min Q_u / Q_p`, which is drawn to bins of one or two rows.
        labeled_mask: L, bool `[N]`, for "en" with positives that were held out: rows that g calls labelled; None: P.

    Returns:
        Scalars, at least float32, without gradient: `"prior"`, in [0, 1]; of "bbe" `"threshold"`, the score c, and
        `"bound"`, the minimum; of "en" None for both.

    Raises:
        ValueError: no positives or no unlabelled rows; NaN among their scores; for "en" scores that are no
            probabilities; delta out of its bounds; an unknown word.
    """
    check_word("method", method, PriorMethod)
    scores = at_least_float32(scores.detach())
    unlabeled_mask = ~positive_mask if unlabeled_mask is None else unlabeled_mask
    positive, unlabeled = scores[positive_mask], scores[unlabeled_mask]
    for name, rows in (("positive_mask", positive), ("unlabeled_mask", unlabeled)):
        if not len(rows):
            raise ValueError(f"{name}: found no rows, allowed are some")
        if rows.isnan().any():
            raise ValueError("scores: found NaN, allowed are numbers")
    if method == "en":
        known = positive_mask if labeled_mask is None else labeled_mask
        return {"prior": _elkan_noto(positive, known, positive_mask, len(unlabeled)), "threshold": None, "bound": None}
    _check_share("delta", delta, inside=True)
    return _best_bin(positive, unlabeled, _slack(len(positive), len(unlabeled), delta, gamma) if slack else 0.0)


def _elkan_noto(probabilities: Tensor, labeled: Tensor, positive_mask: Tensor, unlabeled: int) -> Tensor:
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("scores: found numbers that are no probabilities, allowed for 'en' are those in [0, 1]")
    positives = labeled.sum() / probabilities.mean()  # infinitely many where nothing is thought labelled
    return ((positives - (labeled | positive_mask).sum()) / unlabeled).clamp(0, 1)


def _slack(positives: int, unlabeled: int, delta: float, gamma: float) -> float:
    return (1 + gamma) * sum(math.sqrt(math.log(4 / delta) / (2 * rows)) for rows in (positives, unlabeled))


def _best_bin(positive: Tensor, unlabeled: Tensor, slack: float) -> dict[str, Tensor | None]:
    """The least upper bound over all cuts; of equal ones the lowest cut's."""
    cuts = torch.cat([positive, unlabeled]).unique()
    q_p, q_u = (_share_at_least(rows, cuts) for rows in (positive, unlabeled))
    bounds = torch.where(q_p > 0, (q_u + slack) / q_p, math.inf)
    best = bounds.argmin()
    return {"prior": (q_u[best] / q_p[best]).clamp(max=1), "threshold": cuts[best], "bound": bounds[best]}


def _share_at_least(rows: Tensor, cuts: Tensor) -> Tensor:
    below = torch.searchsorted(rows.sort().values, cuts)
    return (len(rows) - below).to(rows.dtype) / len(rows)


# ------------------------------------------------------------------------------------------------ calibration
def prior_offset(scores: Tensor, *, prior: float | Tensor) -> Tensor:
    """The number b for which the mean of `sigmoid(scores + b)` is the prior: calibration in the large.

    Args:
        scores: `[n]`, finite logits of unlabelled rows.
        prior: in (0, 1).

    Returns:
        b, a scalar, at least float32, without gradient.

    Raises:
        ValueError: a prior out of its bounds; no scores, or some that are not finite.
    """
    _check_share("prior", prior, inside=True)
    scores = at_least_float32(scores.detach())
    if not scores.numel() or not scores.isfinite().all():
        raise ValueError("scores: found none or some that are not finite, allowed are finite numbers, one at least")
    target = torch.as_tensor(prior, dtype=scores.dtype, device=scores.device)
    low, high = target.logit() - scores.max(), target.logit() - scores.min()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_low = (scores + middle).sigmoid().mean() < target
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return (low + high) / 2
