"""Membership inference: was a model trained on these samples? Attacks on its logits."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_ext.functional import confidence_attack, per_sample_losses

Rows = tuple[ArrayLike, ArrayLike]  # logits [N, C] and labels [N]


def threshold_attack(members: Rows, nonmembers: Rows, targets: Rows) -> dict[str, float]:
    """One threshold on the confidence in the true label, see `hf_ext.functional.confidence_attack`.

    Args:
        members, nonmembers: logits `[N, C]` and labels `[N]` of samples that were trained on, and that were not.
        targets: of the samples in question; no part of the two above.

    Returns:
        `threshold`, and `nonmember_share`, the share of targets called non-member.
    """
    confidences = [torch.from_numpy(np.exp(-_losses(*_arrays(rows)))) for rows in (members, nonmembers, targets)]
    threshold, share = confidence_attack(*confidences)
    return {"threshold": float(threshold), "nonmember_share": float(share)}


def learned_attack(
    members: Rows, nonmembers: Rows, targets: Rows, *, folds: int = 5, seed: int = 0
) -> dict[str, float]:
    """Logistic regression on features of the logits: sorted probabilities, loss and entropy.

    It is trained on members and non-members, each class with half of the total sample weight. Its own quality is
    measured by cross-validation: with an AUC near 0.5 an attack says nothing about the targets.

    Args:
        members, nonmembers, targets: as for `threshold_attack`.
        folds: of the cross-validation.
        seed: of the folds.

    Returns:
        `auc` on members and non-members, `target_auc` of telling targets from members (0.5: they look like members),
        and `nonmember_share`, the share of targets called non-member.

    Raises:
        ValueError: fewer members or non-members than folds.
    """
    parts = [_features(*_arrays(rows)) for rows in (members, nonmembers, targets)]
    for name, rows in zip(("members", "nonmembers"), parts, strict=False):
        if len(rows) < folds:
            raise ValueError(f"{name}: found {len(rows)} rows, allowed are at least folds={folds}")
    known = np.concatenate(parts[:2])
    is_member = np.repeat([1, 0], [len(parts[0]), len(parts[1])])
    attack = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    held_out = cross_val_predict(attack, known, is_member, cv=split, method="predict_proba")[:, 1]
    membership = attack.fit(known, is_member).predict_proba(parts[2])[:, 1]
    scores = np.concatenate([held_out[is_member == 1], membership])
    is_target = np.repeat([0, 1], [len(parts[0]), len(membership)])
    return {
        "auc": float(roc_auc_score(is_member, held_out)),
        "target_auc": float(roc_auc_score(is_target, -scores)),
        "nonmember_share": float((membership < 0.5).mean()),
    }


def _arrays(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    logits, labels = np.asarray(rows[0], dtype=np.float64), np.asarray(rows[1])
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"rows: found logits of shape {logits.shape} and labels of shape {labels.shape}, allowed are [N, C] and "
            "[N] with N > 0"
        )
    if not (np.issubdtype(labels.dtype, np.integer) and 0 <= labels.min() <= labels.max() < logits.shape[1]):
        raise ValueError(
            f"rows: found labels of {labels.dtype} from {labels.min()} to {labels.max()}, allowed are integers in "
            f"[0, {logits.shape[1]})"
        )
    return logits, labels.astype(np.int64)


def _losses(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    losses: NDArray[np.float64] = per_sample_losses(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
    return losses


def _features(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    log_probabilities = log_softmax(logits, axis=1)
    probabilities = np.exp(log_probabilities)
    entropy = -np.sum(probabilities * log_probabilities, axis=1)
    ranked = np.sort(probabilities, axis=1)[:, ::-1]
    return np.column_stack([ranked, _losses(logits, labels), entropy])
