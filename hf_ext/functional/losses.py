r"""The loss of every sample, which several methods weigh, sum and compare: those of transformers' own models.

| symbol | argument | |
|---|---|---|
| `z`, `y` | `logits`, `labels` | of sample i, or of its tokens t |

| loss (of no paper) | function |
|---|---|
| `l_i = -log softmax(z_i)_{y_i}`; of tokens, the mean where `y_it != -100` | `per_sample_losses`, integer labels |
| `l_i = mean_c -[y_ic log sigmoid(z_ic) + (1 - y_ic) log(1 - sigmoid(z_ic))]` | the same, labels `[B, C]` |
| `l_i = mean_c (z_ic - y_ic)^2` | the same, labels `[B]`, or `[B, C]` with `regression` |
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32

__all__ = ["IGNORED_LABEL", "per_sample_losses"]

#: positions with this label are no part of a loss
IGNORED_LABEL = -100


def per_sample_losses(
    logits: Tensor,
    labels: Tensor,
    *,
    shift_labels: bool = False,
    label_smoothing: float = 0.0,
    regression: bool = False,
) -> Tensor:
    """The usual transformers loss of every sample.

    Args:
        logits: `[B, C]` (classes, labels or one regression value) or `[B, S, V]` (tokens).
        labels: int `[B]` for classes; float `[B, C]` for multi-label; `[B]` or `[B, 1]` of any dtype for regression,
            which is what one output is for; int `[B, S]` for tokens, where -100 is ignored and a sample's loss is the
            mean over its tokens.
        shift_labels: position i predicts label i + 1 (causal language models).
        label_smoothing: share of the target that is spread over all classes or tokens.
        regression: labels, of the logits' shape `[B, C]`, are values, not probabilities of classes.

    Returns:
        `[B]`, at least float32.

    Raises:
        ValueError: shapes or dtypes that fit none of these.
    """
    logits = at_least_float32(logits)
    options: dict[str, Any] = {"ignore_index": IGNORED_LABEL, "label_smoothing": label_smoothing, "reduction": "none"}
    if regression and logits.ndim == 2 and labels.shape == logits.shape:
        return (logits - labels.to(logits.dtype)).square().mean(dim=1)
    if logits.ndim == 2 and logits.shape[1] == 1 and labels.numel() == len(labels) == len(logits):
        labels = labels.to(logits.dtype)  # of one class there would be nothing to learn
    if labels.is_floating_point():
        if logits.ndim == 2 and labels.shape == logits.shape and logits.shape[1] > 1:
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(dim=1)
        if logits.numel() == labels.numel() == labels.shape[0]:
            return (logits.reshape(-1) - labels.reshape(-1).to(logits.dtype)) ** 2
    elif logits.ndim == 2 and labels.shape == logits.shape[:1]:
        return F.cross_entropy(logits, labels, **options)
    elif logits.ndim == 3 and labels.shape == logits.shape[:2]:
        if shift_labels:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, **options)
        return losses.sum(dim=1) / labels.ne(IGNORED_LABEL).sum(dim=1).clamp(min=1)
    raise ValueError(
        f"labels: found {labels.dtype} of shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)}, "
        "allowed are classes [B], multi-label [B, C], regression [B] and tokens [B, S]"
    )
