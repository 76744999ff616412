"""The losses of next items: softmax over candidates, or binary cross-entropy of each, and which candidates count."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: a label that is in no loss
IGNORED = -100


def mask_candidates(logits: Tensor, candidate_ids: Tensor, labels: Tensor | None) -> Tensor:
    """Logits that are -inf where a candidate does not count: padding, and further copies of the target.

    Args:
        logits: `[B, C]`.
        candidate_ids: rows, `[B, C]`, or `[C]` for all.
        labels: places of the targets among them, int64 `[B]`, for which copies are looked for.
    """
    ids = candidate_ids.expand_as(logits)
    wrong = ids == 0
    if labels is not None and not labels.is_floating_point():
        places = labels.clamp(min=0)[:, None]
        others = torch.arange(ids.shape[1], device=ids.device) != places
        wrong = wrong | ((ids == ids.gather(1, places)) & others & (labels != IGNORED)[:, None])
    return logits.masked_fill(wrong, -math.inf)


def next_item_loss(
    logits: Tensor, labels: Tensor, kind: str, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The loss of a batch, a scalar: the mean, or the sum divided by `num_items_in_batch`; computed in float32.

    Args:
        logits: `[B, C]`, -inf where a candidate does not count.
        labels: the target's place, int64 `[B]`; or for `"bce"` 0 and 1 for every candidate, floats `[B, C]`. -100 is
            in no loss; without any other label the loss is 0.
        kind: `"softmax"` or `"bce"`; of the latter and an int64 label, a row's loss is the mean over its candidates.
        num_items_in_batch: number of labels over all micro-batches of an update.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    total = _softmax(logits, labels) if kind == "softmax" else _binary(logits, labels)
    if num_items_in_batch is None:
        return total / (labels != IGNORED).sum().clamp(min=1)
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device).reshape(())
    return total / num_items_in_batch


def _softmax(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    counts = logits != -math.inf
    finite = logits.masked_fill(~counts, 0)
    if labels.is_floating_point():
        counts = counts & (labels != IGNORED)
        return F.binary_cross_entropy_with_logits(
            finite, labels.to(finite.dtype), counts.to(finite.dtype), reduction="sum"
        )
    places = torch.arange(logits.shape[1], device=logits.device)
    targets = (places == labels[:, None]).to(finite.dtype)
    losses = F.binary_cross_entropy_with_logits(finite, targets, counts.to(finite.dtype), reduction="none")
    rows = losses.sum(dim=1) / counts.sum(dim=1).clamp(min=1)
    return rows.masked_fill(labels == IGNORED, 0).sum()
