"""How well a concept was forgotten: UA, RA, TA, MIA and the gap to a model retrained without it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from hf_ext.functional import unlearning_gap
from hf_ext.metrics.attacks import learned_attack, threshold_attack

#: the folder to give to `evaluate.load`
UNLEARNING_METRIC = str(Path(__file__).parent / "unlearning")
#: parts that a row can belong to: concept data handed in, concept data hidden in the remaining data, other training
#: data, test data outside the concept
PARTS = ("forget", "hidden", "retain", "test")
_IN_THE_GAP = ("UA", "RA", "TA", "MIA")


def unlearning_metrics(
    logits: ArrayLike,
    labels: ArrayLike,
    parts: Sequence[str],
    *,
    retrained: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """UA, RA, TA and MIA in percent.

    UA is the accuracy on the concept's training data, in the model's labels: the lower, the more is forgotten, yet
    retraining need not bring it to zero (with coarse labels siblings teach the label). RA is the accuracy on the other
    training data, TA on test data outside the concept. MIA is the share of the concept's training data that a
    threshold on the confidence classifies as never trained on; it is chosen on the other training data and test data.

    Args:
        logits: `[N, C]`.
        labels: `[N]`, in the model's labels.
        parts: for every row `"forget"` (the concept's data that were handed in), `"hidden"` (its data that were not),
            `"retain"` (other training data) or `"test"` (test data outside the concept). `"hidden"` may be absent.
        retrained: the same metrics of a model trained without the concept, for the `gap`.
        seed: of the learnt attack.

    Returns:
        `UA`, `UA_forget` and, with hidden rows, `UA_hidden`; `RA`, `TA`, `MIA`; `MIA_learned`, the share of the
        concept's data that a learnt attack takes for never trained on, and `MIA_learned_auc`, how well it tells
        members from non-members (percent, 50 is chance); `gap` with `retrained`.

    Raises:
        ValueError: unknown or missing parts, or shapes that do not fit.
    """
    logits, labels, where = np.asarray(logits), np.asarray(labels), np.asarray(parts)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or where.shape != labels.shape:
        raise ValueError(
            f"logits, labels, parts: found shapes {logits.shape}, {labels.shape} and {where.shape}, "
            "allowed are [N, C], [N] and [N]"
        )
    unknown, missing = set(parts) - set(PARTS), {"forget", "retain", "test"} - set(parts)
    if unknown or missing:
        raise ValueError(
            f"parts: found {sorted(map(str, set(parts)))}, allowed are {', '.join(PARTS)}, and all but 'hidden' have "
            "to occur"
        )
    right = logits.argmax(axis=1) == labels
    concept = np.isin(where, ("forget", "hidden"))
    members, nonmembers, targets = (
        (logits[picked], labels[picked]) for picked in (where == "retain", where == "test", concept)
    )
    shares = {
        "UA": right[concept].mean(),
        **{f"UA_{part}": right[where == part].mean() for part in ("forget", "hidden") if part in parts},
        "RA": right[where == "retain"].mean(),
        "TA": right[where == "test"].mean(),
        "MIA": threshold_attack(members, nonmembers, targets)["nonmember_share"],
    }
    if min(len(members[1]), len(nonmembers[1])) >= 5:
        learned = learned_attack(members, nonmembers, targets, seed=seed)
        shares |= {"MIA_learned": learned["nonmember_share"], "MIA_learned_auc": learned["auc"]}
    percent = {name: 100 * float(value) for name, value in shares.items()}
    return percent if retrained is None else percent | {"gap": gap(percent, retrained)}


def gap(metrics: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Mean absolute difference of UA, RA, TA and MIA to the retrained model's.

    Raises:
        ValueError: one of the four is missing.
    """
    for name, given in (("metrics", metrics), ("retrained", retrained)):
        if missing := [key for key in _IN_THE_GAP if key not in given]:
            raise ValueError(
                f"{name}: found none of {', '.join(missing)}, allowed are all of {', '.join(_IN_THE_GAP)}"
            )
    values: list[Any] = [[given[key] for key in _IN_THE_GAP] for given in (metrics, retrained)]
    return float(unlearning_gap(*(torch.tensor(four, dtype=torch.float64) for four in values)))
