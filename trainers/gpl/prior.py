"""The share of positives among the unlabelled nodes: given or estimated, and what follows for the loss and the cut."""

import math
from typing import Any

import torch
from torch import Tensor

from hf_ext.functional import estimate_class_prior, prior_offset, rank_and_select
from hf_ext.metrics import prior_interval
from hf_ext.trainers.gpl.graph import PUGraph

Interval = tuple[float, float]


def estimated_prior(scores: Tensor, graph: PUGraph, args: Any) -> tuple[float, Interval | None]:
    """The prior, inside of (0, 1), and its interval; None for a given one.

    Args:
        scores: logits, `[N]`; for "en" of a network that was trained on labelled against unlabelled nodes.
        graph: with held-out positives, unless the prior is given.
        args: with `GPLArguments`.
    """
    if not isinstance(args.gpl_prior, str):
        return float(args.gpl_prior), None
    method: Any = args.gpl_prior
    values = scores.sigmoid() if method == "en" else scores
    masks: dict[str, Any] = {"positive_mask": graph.held_out, "unlabeled_mask": graph.hidden}
    masks["labeled_mask"] = graph.positive
    prior = estimate_class_prior(values, **masks, method=method)["prior"]
    assert prior is not None
    arrays: dict[str, Any] = {name: mask.cpu().numpy() for name, mask in masks.items()}
    low, high = prior_interval(values.cpu().numpy(), **arrays, method=method, seed=args.gpl_seed)
    margin = 0.5 / int(graph.hidden.sum())  # less than half a node is none, and no logit has that mean
    inside = min(max(float(prior), margin), 1 - margin)
    return inside, (min(low, inside), max(high, inside))


def prior_of_loss(prior: float, graph: PUGraph) -> float:
    """The share of positives in what the loss takes for unlabelled, held-out positives among it."""
    hidden, held_out = int(graph.hidden.sum()), int(graph.held_out.sum())
    return (prior * hidden + held_out) / (hidden + held_out)


def calibration(logits: Tensor, graph: PUGraph, prior: float) -> dict[str, float]:
    """What makes probabilities and a decision of a model's logits `[N]`, as its configuration has them.

    Returns:
        `score_offset`, with which the mean probability of the unlabelled nodes is the prior, and `threshold`, the
        least logit of the share of them that the prior says.
    """
    hidden = graph.hidden
    selected = rank_and_select(logits, hidden, prior=prior)
    cut = logits[selected].min() if bool(selected.any()) else _above(logits[hidden].max())
    return {"score_offset": float(prior_offset(logits[hidden], prior=prior)), "threshold": float(cut)}


def _above(logit: Tensor) -> Tensor:
    """The next number."""
    return torch.nextafter(logit, torch.full_like(logit, math.inf))
