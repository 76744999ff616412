r"""GPL, graph positive-unlabelled learning with a label propagation loss: edges, labels that travel along them, ranks.

Wu et al., "Unraveling the Impact of Heterophilic Structures on Graph Positive-Unlabeled Learning", ICML 2024,
https://arxiv.org/abs/2405.19919. Neither the paper's full text nor its code could be had: written from the abstract,
and from reading notes of others, which say what its equations 4 to 9 are.

| symbol | argument | |
|---|---|---|
| `(src, tgt)_e` | `edge_index` | int64 `[2, M]`: edge e takes its source's label to its target; duplicates add up |
| `a_e`, `w_e` | `edge_scores`, `edge_weight` | of edge e: logits, and the mask on the adjacency that they make |
| `E(0)`, `q(0)` | `labels` | of N nodes: columns of classes, or one probability of being positive |
| `alpha`, `K` | `alpha`, `steps` | what a node keeps in a step of the propagation; number of steps |
| `P`, `U` | `positive_mask`, `unlabeled_mask` | known positives; unlabelled nodes, all others by default |
| `S` | `selected_mask` | unlabelled nodes that are taken for positive |
| `pi` | `prior` | share of positives in U |

| equation | function |
|---|---|
| A^ = M * A: `w = sigmoid(a)`, or softmax over a target's edges [ours] | `edge_weights` |
| 5: `E <- alpha E + (1 - alpha) D^-1 A^ E`, D of the weighted graph [ours] | `propagate_labels` |
| 6, 9: `mean_P -log q~(K) + lambda mean_N -log(1 - q~(K))` ["nll" is ours] | `label_propagation_loss` |
| 8: S, the share pi of U with the highest scores | `rank_and_select` |
| 8: cross entropy, P and S positive, U without S negative | `rank_select_loss` |
| `sum_e w_e [y_src = y_tgt] / sum_e w_e`, as it is or adjusted for chance (not of the paper) | `edge_homophily` |

Equation 7, the class prior, and the baselines' risks are in `positive_unlabeled.py`.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32
from hf_ext.functional._words import check_word

__all__ = [
    "edge_homophily",
    "edge_weights",
    "label_propagation_loss",
    "propagate_labels",
    "rank_and_select",
    "rank_select_loss",
]

EdgeKind = Literal["sigmoid", "softmax"]
PropagationKind = Literal["lazy", "restart"]
LossForm = Literal["nll", "log_negative"]
Reduction = Literal["balanced", "sample"]
HomophilyKind = Literal["edge", "adjusted"]


# ------------------------------------------------------------------------------------------------ edges
def edge_weights(edge_scores: Tensor, edge_index: Tensor, *, num_nodes: int, kind: EdgeKind = "sigmoid") -> Tensor:
    """Weights of edges from their logits.

    Args:
        edge_scores: a, `[M]`.
        edge_index: int64 `[2, M]`.
        num_nodes: N.
        kind: "sigmoid", each for itself; "softmax", over all edges into the same target, where they sum to 1.

    Returns:
        w, `[M]`, >= 0, at least float32. Differentiable.

    Raises:
        ValueError: shapes that do not fit; an unknown word.
    """
    check_word("kind", kind, EdgeKind)
    _check_edges(edge_index, edge_scores, "edge_scores")
    scores = at_least_float32(edge_scores)
    if kind == "sigmoid":
        return scores.sigmoid()
    target = edge_index[1]
    largest = scores.new_full((num_nodes,), -math.inf).scatter_reduce(0, target, scores.detach(), "amax")
    parts = (scores - largest[target]).exp()
    return parts / parts.new_zeros(num_nodes).index_add(0, target, parts)[target]


def _check_edges(edge_index: Tensor, values: Tensor | None = None, name: str = "edge_weight") -> None:
    if edge_index.ndim != 2 or len(edge_index) != 2:
        raise ValueError(f"edge_index: found shape {tuple(edge_index.shape)}, allowed is [2, M]")
    if values is not None and values.shape != edge_index.shape[1:]:
        raise ValueError(
            f"{name}: found shape {tuple(values.shape)}, allowed is [{edge_index.shape[1]}], one per edge"
        )


# ------------------------------------------------------------------------------------------------ propagation
def propagate_labels(
    edge_index: Tensor,
    edge_weight: Tensor | None,
    labels: Tensor,
    *,
    steps: int,
    alpha: float,
    kind: PropagationKind = "lazy",
    clamp_mask: Tensor | None = None,
) -> Tensor:
    r"""Labels after some steps along the edges: `E <- alpha E + (1 - alpha) D^-1 A E`.

    D has the summed weights of the edges into each node, so that a step takes means; a node without any keeps what it
    has. No loops are added here: append them where a node's own label is to count. Memory: some `[M]` and `[M, C]`.

    Args:
        edge_index: int64 `[2, M]`.
        edge_weight: `[M]`, >= 0; None: all 1.
        labels: E(0), `[N]` or `[N, C]`.
        steps: K >= 0.
        alpha: in [0, 1].
        kind: "lazy": a node keeps the share alpha of what it has; "restart": of what it had at first.
        clamp_mask: bool `[N]`, nodes that are given their first labels again after each step.

    Returns:
        As the labels, at least float32. Differentiable in weights and labels.

    Raises:
        ValueError: shapes that do not fit; numbers out of their bounds; an unknown word.
    """
    check_word("kind", kind, PropagationKind)
    _check_edges(edge_index, edge_weight)
    if not steps >= 0:
        raise ValueError(f"steps: found {steps!r}, allowed are integers >= 0")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: found {alpha!r}, allowed are numbers in [0, 1]")
    first = at_least_float32(labels if labels.is_floating_point() else labels.float())
    share, isolated = _mean_weights(edge_index, edge_weight, first)
    source, target = edge_index
    now = first
    for _ in range(steps):
        messages = _by_row(share, now) * now[source]
        mean = torch.where(_by_row(isolated, now), now, torch.zeros_like(now).index_add(0, target, messages))
        now = alpha * (first if kind == "restart" else now) + (1 - alpha) * mean
        if clamp_mask is not None:
            now = torch.where(_by_row(clamp_mask, now), first, now)
    return now


def _mean_weights(edge_index: Tensor, edge_weight: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that sum to 1 over the edges into a node, `[M]`; the nodes where there is none above 0, bool `[N]`."""
    target = edge_index[1]
    weight = like.new_ones(len(target)) if edge_weight is None else edge_weight.to(like.dtype)
    degree = weight.new_zeros(len(like)).index_add(0, target, weight)
    isolated = degree <= 0
    return weight / torch.where(isolated, 1.0, degree)[target], isolated


def _by_row(values: Tensor, like: Tensor) -> Tensor:
    """`[N]` in a shape that broadcasts along the columns, if there are any."""
    return values if like.ndim == 1 else values[:, None]


def label_propagation_loss(
    edge_index: Tensor,
    edge_weight: Tensor | None,
    labels: Tensor,
    positive_mask: Tensor,
    negative_mask: Tensor | None = None,
    *,
    steps: int,
    alpha: float,
    kind: PropagationKind = "lazy",
    form: LossForm = "nll",
    negative_weight: float = 1.0,
    eps: float = 1e-6,
) -> dict[str, Tensor]:
    r"""How far neighbours turn positives negative, and negatives positive.

    "nll": `mean_P -log q~ + lambda mean_N -log(1 - q~)`, `q~ = eps + (1 - 2 eps) q(K)`. "log_negative", as the paper's
    equation is said to be: `mean_P log(1 - q~) + lambda mean_N log q~`, bounded by eps alone, steep where it is right.

    Args:
        edge_index, edge_weight, steps, alpha, kind: as in `propagate_labels`.
        labels: q(0), the probabilities of being positive, `[N]`.
        positive_mask: bool `[N]`.
        negative_mask: bool `[N]`; None: no node.
        form: see above.
        negative_weight: lambda.
        eps: in (0, 0.5).

    Returns:
        Scalars `"positive"`, `"negative"` (without lambda; 0 of no nodes) and `"total"`, at least float32.
        Differentiable in weights and labels.

    Raises:
        ValueError: as `propagate_labels`; labels that are no column; eps out of its bounds.
    """
    check_word("form", form, LossForm)
    if labels.ndim != 1:
        raise ValueError(f"labels: found shape {tuple(labels.shape)}, allowed is [N]")
    if not 0 < eps < 0.5:
        raise ValueError(f"eps: found {eps!r}, allowed are numbers in (0, 0.5)")
    q = propagate_labels(edge_index, edge_weight, labels, steps=steps, alpha=alpha, kind=kind)
    yes, no = (eps + (1 - 2 * eps) * share for share in (q, 1 - q))  # 1 - q~ would round where q~ is near 1
    losses = {"nll": (-yes.log(), -no.log()), "log_negative": (no.log(), yes.log())}
    of_positives, of_negatives = losses[form]
    positive = _masked_mean(of_positives, positive_mask)
    negative = positive.new_zeros(()) if negative_mask is None else _masked_mean(of_negatives, negative_mask)
    return {"positive": positive, "negative": negative, "total": positive + negative_weight * negative}


def _masked_mean(values: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Sum over the mask by its size, or by a larger count that it is a part of; 0 where there is nothing."""
    count = mask.sum() if count is None else count
    return torch.where(mask, values, 0.0).sum() / count.clamp(min=1)


# ------------------------------------------------------------------------------------------------ ranks
def rank_and_select(scores: Tensor, unlabeled_mask: Tensor, *, prior: float | Tensor) -> Tensor:
    """S: the `floor(prior |U| + 0.5)` unlabelled nodes with the highest scores; of equal ones the first.

    Args:
        scores: `[N]`.
        unlabeled_mask: bool `[N]`.
        prior: in [0, 1].

    Returns:
        bool `[N]`. No gradient.

    Raises:
        ValueError: a prior out of its bounds, or NaN among the scores of U.
    """
    if not 0 <= prior <= 1:
        raise ValueError(f"prior: found {float(prior)!r}, allowed are numbers in [0, 1]")
    nodes = unlabeled_mask.nonzero()[:, 0]
    if scores[nodes].isnan().any():
        raise ValueError("scores: found NaN, allowed are numbers")
    ranked = scores.detach()[nodes].sort(descending=True, stable=True).indices
    selected = torch.zeros_like(unlabeled_mask)
    selected[nodes[ranked[: math.floor(float(prior) * len(nodes) + 0.5)]]] = True
    return selected


def rank_select_loss(
    scores: Tensor,
    positive_mask: Tensor,
    selected_mask: Tensor,
    unlabeled_mask: Tensor | None = None,
    *,
    reduction: Reduction = "balanced",
    counts: Tensor | Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Cross entropy with P and S for positive, and the rest of U for negative.

    Args:
        scores: s, logits, `[N]`.
        positive_mask: P, bool `[N]`.
        selected_mask: S, bool `[N]`.
        unlabeled_mask: U, bool `[N]`; None: all that is not in P.
        reduction: "balanced": the sum of the means of `softplus(-s)` over positives and `softplus(s)` over negatives;
            "sample": both sums by the number of nodes used.
        counts: `[2]`, positives and negatives in all that this is a part of (a batch of a graph): the results are then
            this part's share in those of the whole. By default these nodes are the whole.

    Returns:
        Scalars `"positive"`, `"negative"` and `"total"`, their sum, at least float32; 0 of no nodes. Differentiable in
        the scores.

    Raises:
        ValueError: an unknown word.
    """
    check_word("reduction", reduction, Reduction)
    scores = at_least_float32(scores)
    unlabeled = ~positive_mask if unlabeled_mask is None else unlabeled_mask
    taken, others = positive_mask | selected_mask, unlabeled & ~selected_mask & ~positive_mask
    of_whole = torch.stack([taken.sum(), others.sum()]) if counts is None else torch.as_tensor(counts).to(scores)
    if reduction == "sample":
        of_whole = of_whole.sum().expand(2)
    positive = _masked_mean(F.softplus(-scores), taken, of_whole[0])
    negative = _masked_mean(F.softplus(scores), others, of_whole[1])
    return {"positive": positive, "negative": negative, "total": positive + negative}


# ------------------------------------------------------------------------------------------------ homophily
def edge_homophily(
    edge_index: Tensor, y: Tensor, *, edge_weight: Tensor | None = None, kind: HomophilyKind = "edge"
) -> Tensor:
    r"""The share of the edges' weight that is between nodes of one class.

    Of edges that are no loops, and whose two classes are known. "adjusted": `(h - c) / (1 - c)`, c the sum of squares
    of the classes' shares of weighted edge ends, which is what h would be by chance: a rare class makes h high.

    Args:
        edge_index: int64 `[2, M]`.
        y: int64 `[N]`, -1 where it is unknown.
        edge_weight: `[M]`, >= 0; None: all 1.
        kind: see above.

    Returns:
        A scalar, at least float32; NaN where it is undefined: without such an edge, "adjusted" with one class alone.

    Raises:
        ValueError: shapes that do not fit; an unknown word.
    """
    check_word("kind", kind, HomophilyKind)
    _check_edges(edge_index, edge_weight)
    source, target = y.long()[edge_index]
    known = ((edge_index[0] != edge_index[1]) & (source >= 0) & (target >= 0)).float()
    weight = known if edge_weight is None else torch.where(known > 0, at_least_float32(edge_weight), 0.0)
    total = weight.sum()
    homophily = torch.where(source == target, weight, 0.0).sum() / total  # 0 / 0 is NaN
    if kind == "edge" or not len(y):
        return homophily
    shares = weight.new_zeros(max(int(y.max()), 0) + 1)
    for ends in (source, target):  # those that are unknown have weight 0
        shares = shares.index_add(0, ends.clamp(min=0), weight / (2 * total))
    by_chance = shares.square().sum()
    return torch.where((shares > 0).sum() > 1, (homophily - by_chance) / (1 - by_chance), math.nan)
