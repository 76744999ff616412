r"""How well targets are ranked among candidates, and how unequally groups of users are served.

| symbol | argument | |
|---|---|---|
| `s_c`, `y` | `scores`, `targets` | of candidate c in row i; the one that was right |
| `r`, `n` | `ranks`, `num_candidates` | of the target, from 1; among how many |
| `g` | `groups` | of users, 0 (tail) to G - 1 (head) |

| measure (of no paper) | function |
|---|---|
| `r = 1 + #(s_c > s_y)`, and ties | `target_ranks` |
| `NDCG@k = [r <= k] / log2(1 + r)`, `HR@k = [r <= k]`, `MRR = 1 / r` | `ranking_metrics` |
| `AUC = 1 - (r - 1) / (n - 1)` | the same |
| the most active users, by training data alone | `user_groups` |
| mean of each group, their gap and spread | `group_heterogeneity` |
"""

import math
from typing import Literal

import torch
from torch import Tensor

from hf_ext.functional._words import check_word

__all__ = ["group_heterogeneity", "ranking_metrics", "target_ranks", "user_groups"]

#: what a candidate with the target's own score counts as: better, half, worse
Ties = Literal["worst", "mean", "best"]
_TIED = {"worst": 1.0, "mean": 0.5, "best": 0.0}


def target_ranks(scores: Tensor, targets: Tensor, *, exclude: Tensor | None = None, ties: Ties = "worst") -> Tensor:
    """Ranks of the targets among their row's candidates.

    Args:
        scores: `[B, C]`.
        targets: int `[B]`, places among the candidates.
        exclude: bool `[B, C]`, candidates that are none; the target itself always is one.
        ties: candidates with the target's score stand before it ("worst"), half of them do ("mean": the expected
            rank, which AUC asks for), or none ("best": a constant scorer would be perfect).

    Returns:
        `[B]`, at least float32, from 1.

    Raises:
        ValueError: NaN among the scores, which would compare as worse than all; targets that are no places; shapes or
            dtypes that do not fit; an unknown word.
    """
    check_word("ties", ties, Ties)
    if scores.ndim != 2:
        raise ValueError(f"scores: found shape {tuple(scores.shape)}, allowed is [B, C]")
    if targets.shape != scores.shape[:1] or targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(
            f"targets: found {targets.dtype} of shape {tuple(targets.shape)}, allowed are integers of shape "
            f"[{len(scores)}]"
        )
    if exclude is not None and (exclude.shape != scores.shape or exclude.dtype != torch.bool):
        raise ValueError(
            f"exclude: found {exclude.dtype} of shape {tuple(exclude.shape)}, allowed are bool of shape "
            f"{list(scores.shape)}"
        )
    if not ((targets >= 0) & (targets < scores.shape[1])).all():
        raise ValueError(f"targets: found {targets.tolist()}, allowed are places in [0, {scores.shape[1]})")
    if scores.isnan().any():
        raise ValueError("scores: found NaN, allowed are numbers")
    places = targets.long()[:, None]
    own = scores.gather(1, places)
    better, same = scores > own, scores == own
    if exclude is not None:
        candidates = (~exclude).scatter(1, places, True)
        better, same = better & candidates, same & candidates
    dtype = torch.promote_types(scores.dtype, torch.float32)
    ranks = 1 + better.sum(1).to(dtype)
    tied = same.sum(1).to(dtype) - 1  # but for the target itself
    return ranks + _TIED[ties] * tied


def ranking_metrics(ranks: Tensor, num_candidates: int | Tensor, *, k: int = 10) -> dict[str, Tensor]:
    """Measures of rows with one target each.

    Args:
        ranks: `[B]`, from 1 to the number of candidates; with half ranks where ties have an expected rank.
        num_candidates: how many there are, the target included; a number or int `[B]`.
        k: the cut of NDCG and HR, >= 1; MRR has none.

    Returns:
        `"ndcg"`, `"hr"`, `"mrr"` and `"auc"`, each `[B]`, at least float32; the last is NaN where the target is the
        only candidate.

    Raises:
        ValueError: ranks that are NaN or out of their bounds; k below 1; shapes that do not fit.
    """
    if not k >= 1:
        raise ValueError(f"k: found {k!r}, allowed are integers >= 1")
    ranks = ranks.to(torch.promote_types(ranks.dtype, torch.float32))
    count = torch.as_tensor(num_candidates, device=ranks.device).to(ranks.dtype)
    if ranks.ndim != 1 or count.shape not in (ranks.shape, ()):
        raise ValueError(
            f"ranks, num_candidates: found shapes {tuple(ranks.shape)} and {tuple(count.shape)}, allowed are [B] for "
            "the first and a number or [B] for the second"
        )
    if not ((ranks >= 1) & (ranks <= count)).all():
        raise ValueError("ranks: found ranks that are NaN or out of bounds, allowed are those in [1, num_candidates]")
    found = (ranks <= k).to(ranks.dtype)
    others = count - 1
    return {
        "ndcg": found / torch.log2(1 + ranks),
        "hr": found,
        "mrr": 1 / ranks,
        "auc": torch.where(others > 0, 1 - (ranks - 1) / others.clamp(min=1), math.nan),
    }


def user_groups(activity: Tensor, *, head_fraction: float = 0.2) -> Tensor:
    """Head and tail users: at most so large a share of the most active ones is the head.

    Users with equal activity are never separated: a tie that would pass the share is all tail, and where all are
    alike there is no head.

    Args:
        activity: `[U]`, how much training data each user has. Validation and test data have no say.
        head_fraction: in [0, 1].

    Returns:
        int64 `[U]`, 1 for the head and 0 for the tail.

    Raises:
        ValueError: a share out of its bounds, NaN, or another shape.
    """
    if not 0 <= head_fraction <= 1:
        raise ValueError(f"head_fraction: found {head_fraction!r}, allowed are numbers in [0, 1]")
    if activity.ndim != 1 or activity.isnan().any():
        raise ValueError(f"activity: found NaN or shape {tuple(activity.shape)}, allowed are numbers of shape [U]")
    places = min(math.floor(head_fraction * len(activity) + 1e-9), len(activity))  # 0.29 * 100 is below 29
    if places == len(activity):
        return torch.ones_like(activity, dtype=torch.int64)
    first_outside = activity.sort(descending=True).values[places]
    return (activity > first_outside).long()


def group_heterogeneity(metric_per_user: Tensor, groups: Tensor, *, num_groups: int = 2) -> dict[str, Tensor]:
    """How a metric differs between groups of users.

    Args:
        metric_per_user: `[U]`; users without a value (NaN) are left out.
        groups: int `[U]`, from 0 (tail) to `num_groups` - 1 (head).
        num_groups: G.

    Returns:
        `"mean"` `[G]`, NaN for an empty group; `"count"` int64 `[G]`; `"overall"`, the mean over users; `"gap"`, the
        last group's mean minus the first's (head minus tail: positive where the head is served better); `"std"`, the
        population standard deviation of the means of the groups that are not empty, NaN where there are fewer than
        two, since what is undefined is not fair. At least float32.

    Raises:
        ValueError: groups that are none; shapes or dtypes that do not fit.
    """
    if not num_groups >= 1:
        raise ValueError(f"num_groups: found {num_groups!r}, allowed are integers >= 1")
    if metric_per_user.ndim != 1 or groups.shape != metric_per_user.shape or groups.is_floating_point():
        raise ValueError(
            f"metric_per_user, groups: found shapes {tuple(metric_per_user.shape)} and {tuple(groups.shape)} of "
            f"{groups.dtype}, allowed are [U] for both, the groups integers"
        )
    if not ((groups >= 0) & (groups < num_groups)).all():
        raise ValueError(f"groups: found {groups.unique().tolist()}, allowed are integers in [0, {num_groups})")
    values = metric_per_user.to(torch.promote_types(metric_per_user.dtype, torch.float32))
    valued = ~values.isnan()
    values, groups = values[valued], groups[valued].long()
    count = torch.bincount(groups, minlength=num_groups)
    mean = values.new_zeros(num_groups).index_add_(0, groups, values) / count  # 0 / 0 is NaN
    present = mean[count > 0]
    return {
        "mean": mean,
        "count": count,
        "overall": values.mean(),
        "gap": mean[-1] - mean[0],
        "std": present.std(correction=0) if len(present) > 1 else values.new_tensor(math.nan),
    }
