r"""FER, knowledge-enhanced facial expression recognition: faces matched to text embeddings of expressions.

Li et al., "Knowledge-Enhanced Facial Expression Recognition with Emotional-to-Neutral Transformation", IEEE
Transactions on Multimedia 2025, https://arxiv.org/abs/2409.08598. Written from the abstract, a public summary and the
authors' code; the numbers of the paper's equations are not known. The behaviour is that of the code, but for batches
of which it makes NaN (all faces neutral): these give exact zeros here.

| symbol | argument | |
|---|---|---|
| `f_i in R^D` | `features` | face i of B |
| `n_i in R^D` | `neutral_features` | its neutral transformation, a small MLP's |
| `T in R^{C x D}` | `text_features` | of the C classes, raw |
| `y_i`, `nu` | `labels`, `neutral_id` | class of face i; the neutral class |
| `s` | `logit_scale` | scale of the similarities |
| `M = {i : y_i != nu}`, `m` | | the faces that are not neutral, and their number |
| `abar` | `anchor` | mean text of M |
| `lambda_s`, `lambda_t`, `lambda_c` | the same | weights of the three terms |
| `u(v) = v / ||v||` | | |

| equation (no numbers) | function |
|---|---|
| `z_ic = s u(f_i) . u(T_c)` | `similarity_logits` |
| `L_s = mean_B cross_entropy(z_i, y_i)` | `fer_losses`, term `"match"` |
| `L_t = mean_M [1 - cos(f_i - n_i, T_{y_i} - T_nu)]` | `fer_losses`, term `"transform"` |
| `L_c = mean_{i, j in M} [2 - u(T_{y_i}) . u(f_j) + u(T_{y_i}) . u(n_j)]` | `fer_losses`, term `"contrast"` |
| the same over i = j alone, as the text says | `fer_losses` with `contrast_pairs="paired"` |
| what one face adds to each of the three | `fer_sample_losses` |
| `abar = mean_M u(T_{y_i})`, with which the m x m pairs are `2 - abar . (mean u(f) - mean u(n))` | `fer_anchor` |
| `L = lambda_s L_s + lambda_t L_t + lambda_c L_c` | `fer_losses`, `"total"` |
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32
from hf_ext.functional.losses import IGNORED_LABEL

__all__ = ["fer_anchor", "fer_losses", "fer_sample_losses", "similarity_logits"]

#: below this length a difference of features has no direction
_EPS = 1e-6


def similarity_logits(features: Tensor, text_features: Tensor, *, logit_scale: Tensor | float) -> Tensor:
    r"""`z_ic = s * u(f_i) . u(T_c)`.

    Args:
        features: f, `[B, D]`.
        text_features: T, `[C, D]`; their lengths do not matter here.
        logit_scale: s.

    Returns:
        `[B, C]`, at least float32, also under autocast: with s = 100 half precision is off by half a logit.

    Raises:
        ValueError: widths that differ.
    """
    if features.ndim != 2 or text_features.ndim != 2 or features.shape[1] != text_features.shape[1]:
        raise ValueError(
            f"text_features: found shape {tuple(text_features.shape)} for features of shape {tuple(features.shape)}, "
            "allowed are [C, D] for [B, D]"
        )
    with torch.autocast(features.device.type, enabled=False):
        unit, text = (F.normalize(at_least_float32(x), dim=-1) for x in (features, text_features))
        return logit_scale * unit @ text.to(unit.dtype).T


def fer_anchor(text_features: Tensor, label_counts: Tensor, *, neutral_id: int | None) -> Tensor:
    r"""`abar = mean of u(T_{y_i}) over M`, from how often each label occurs: no gradient goes through it.

    Args:
        text_features: T, `[C, D]`.
        label_counts: `[C]`, of all faces that M is taken from, such as those of all processes.
        neutral_id: nu; without one M is empty.

    Returns:
        `[D]`, at least float32; zeros if M is empty.
    """
    text = F.normalize(at_least_float32(text_features), dim=-1)
    counts = _without_neutral(label_counts, neutral_id).to(text.dtype)
    with torch.autocast(text.device.type, enabled=False):
        return counts @ text / counts.sum().clamp(min=1)


def label_counts_of(labels: Tensor, num_classes: int) -> Tensor:
    """How often each label occurs, float32 `[num_classes]`, -100 left out; without a look at a value."""
    labelled = (labels != IGNORED_LABEL).float()
    return labelled.new_zeros(num_classes).index_add(0, labels.clamp(min=0), labelled)


def _without_neutral(label_counts: Tensor, neutral_id: int | None) -> Tensor:
    if neutral_id is None:
        return torch.zeros_like(label_counts)
    return label_counts.masked_fill(torch.arange(len(label_counts), device=label_counts.device) == neutral_id, 0)


def fer_sample_losses(
    features: Tensor,
    neutral_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    *,
    neutral_id: int | None,
    logit_scale: Tensor | float,
    anchor: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Each face's part in the three terms, which are sums of them over B (match) or m.

    - match: `cross_entropy(z_i, y_i)`
    - transform, for i in M: `1 - cos(f_i - n_i, T_{y_i} - T_nu)`; differences of raw vectors on both sides
    - contrast, for i in M: `2 - a_i . u(f_i) + a_i . u(n_i)` with the anchor `a_i = u(T_{y_i})`, or one anchor for all

    Args:
        features: f, `[B, D]`.
        neutral_features: n, `[B, D]`.
        text_features: T, raw, `[C, D]`.
        labels: y, int64 `[B]`; faces with -100 are left out.
        neutral_id: nu; without one the last two terms are zero.
        logit_scale: s.
        anchor: `[D]`, see `fer_anchor`; by default each face's own.

    Returns:
        `"match"`, `"transform"` and `"contrast"`, each `[B]` and at least float32; the last two are zero outside M.

    Raises:
        ValueError: shapes that do not fit.
    """
    if neutral_features.shape != features.shape:
        raise ValueError(
            f"neutral_features: found shape {tuple(neutral_features.shape)}, allowed is that of features, "
            f"{tuple(features.shape)}"
        )
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels: found shape {tuple(labels.shape)}, allowed is [{len(features)}], one per face")
    logits = similarity_logits(features, text_features, logit_scale=logit_scale)
    match = F.cross_entropy(logits, labels, reduction="none")
    if neutral_id is None:
        return {"match": match, "transform": torch.zeros_like(match), "contrast": torch.zeros_like(match)}
    f, n = at_least_float32(features), at_least_float32(neutral_features)
    text = at_least_float32(text_features).to(f.dtype)
    emotional = (labels != neutral_id) & (labels != IGNORED_LABEL)
    classes = labels.clamp(min=0)  # those of unlabelled faces are masked out below
    transform = 1 - F.cosine_similarity(f - n, text[classes] - text[neutral_id], dim=-1, eps=_EPS)
    a = F.normalize(text, dim=-1)[classes] if anchor is None else anchor.to(f.dtype)
    contrast = 2 - (a * (F.normalize(f, dim=-1) - F.normalize(n, dim=-1))).sum(-1)
    return {
        "match": match,
        "transform": torch.where(emotional, transform, 0.0),
        "contrast": torch.where(emotional, contrast, 0.0),
    }


def fer_losses(
    features: Tensor,
    neutral_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    *,
    neutral_id: int | None,
    logit_scale: Tensor | float,
    contrast_pairs: Literal["all", "paired"] = "all",
    lambda_s: float = 1.0,
    lambda_t: float = 1.0,
    lambda_c: float = 1.0,
    label_counts: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""`total = lambda_s * match + lambda_t * transform + lambda_c * contrast`.

    match is the mean over all B faces, the others over the m of M and exactly 0 without any. The authors' code pulls
    every face of M to the texts of all of them (`contrast_pairs="all"`, m x m pairs: `2 + abar . (qbar - pbar)` with
    the means of u(T_{y_i}), u(f_i), u(n_i)); their text, each to its own (`"paired"`).

    Args:
        features, neutral_features, text_features, labels, neutral_id, logit_scale: as in `fer_sample_losses`.
        contrast_pairs: see above.
        lambda_s, lambda_t, lambda_c: weights.
        label_counts: `[C]`, how often each label occurs in all that this is a part of (micro-batches, processes): the
            results are then this part's share in the terms of the whole. By default the batch is the whole.

    Returns:
        Scalars `"match"`, `"transform"`, `"contrast"`, `"total"`, at least float32.

    Raises:
        ValueError: shapes that do not fit, or an unknown `contrast_pairs`.
    """
    if contrast_pairs not in ("all", "paired"):
        raise ValueError(f"contrast_pairs: found {contrast_pairs!r}, allowed are 'all', 'paired'")
    counts = label_counts_of(labels, len(text_features)) if label_counts is None else label_counts
    losses = fer_sample_losses(
        features,
        neutral_features,
        text_features,
        labels,
        neutral_id=neutral_id,
        logit_scale=logit_scale,
        anchor=fer_anchor(text_features, counts, neutral_id=neutral_id) if contrast_pairs == "all" else None,
    )
    whole = {"match": counts.sum(), "transform": _without_neutral(counts, neutral_id).sum()}
    whole["contrast"] = whole["transform"]
    terms = {name: values.sum() / whole[name].clamp(min=1) for name, values in losses.items()}
    total = lambda_s * terms["match"] + lambda_t * terms["transform"] + lambda_c * terms["contrast"]
    return {**terms, "total": total}
