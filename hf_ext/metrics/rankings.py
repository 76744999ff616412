"""Where each target stands among all items: by a model inside of a Trainer, by a model alone, or by any scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_ext.functional import target_ranks

Integers = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
Batch = Mapping[str, Tensor]
Collator = Callable[[list[Any]], Batch]

#: how many scores are held at once, rows times items: 128 MiB in float32
_MOST_SCORES = 2**25


class Events(Protocol):
    """All events, sorted by user and time: those of user u are `item_rows[offsets[u]:offsets[u + 1]]`."""

    @property
    def offsets(self) -> Integers: ...

    @property
    def item_rows(self) -> Integers: ...


class Split(Protocol):
    """Which events are for training: of user u the first `train_ends[u]`; of item row r there are `item_counts[r]`."""

    @property
    def interactions(self) -> Events: ...

    @property
    def train_ends(self) -> Integers: ...

    @property
    def item_counts(self) -> Integers: ...

    @property
    def activity(self) -> Integers: ...


class TargetRows(Protocol):
    """What rankings need of a dataset for evaluation, such as a validation part of `NextItems`.

    A row has `input_ids`, `labels` (the target's item row, from 1) and `exclude_ids` (items that are no candidates),
    and, if the model takes it, `attention_mask`. `users`, `targets` and `groups` are those of each row.
    """

    @property
    def users(self) -> Integers: ...

    @property
    def targets(self) -> Integers: ...

    @property
    def groups(self) -> Integers: ...

    @property
    def split(self) -> Split: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class RankedTargets:
    """The targets of N rows among all items.

    Args:
        ranks: `[N]`, from 1, ties counted against the target.
        num_candidates: `[N]`, the items that were ranked, the target included.
        top: `[N, k]`, the rows of the best items, best first; 0 where there are fewer.
        mean_ranks: `[N]`, with ties expected; for AUC.
    """

    ranks: Floats
    num_candidates: Integers
    top: Integers
    mean_ranks: Floats


def ranks_of_logits(logits: Any, labels: Tensor, k: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What evaluation keeps of the logits of all items; for `preprocess_logits_for_metrics` of a Trainer.

    Args:
        logits: `[B, num_items]`, column j of item row j + 1, with -inf for what is no candidate, but the target always
            is; or a tuple of outputs that begins with them.
        labels: int `[B]`, the targets' rows.
        k: how many of the best items are kept.

    Returns:
        The fields of `RankedTargets`, as tensors. The ranks of a row with NaN are NaN, which `RankingMetrics` refuses.

    Raises:
        ValueError: labels that are no rows; shapes that do not fit.
    """
    if isinstance(logits, tuple | list):
        logits = logits[0]
    broken = logits.isnan().any(-1)
    if broken.any():
        logits = logits.masked_fill(broken[:, None], 0.0)
    logits = _with_targets(logits, labels - 1)
    ranks, mean_ranks = (
        target_ranks(logits, labels - 1, ties=ties).masked_fill(broken, torch.nan) for ties in ("worst", "mean")
    )
    best = logits.topk(min(k, logits.shape[1]), dim=1)
    top = (best.indices + 1).where(best.values > -torch.inf, 0)
    return ranks, (logits > -torch.inf).sum(1), top, mean_ranks


def _with_targets(logits: Tensor, places: Tensor) -> Tensor:
    """Targets that have -inf are last, but no longer equal to what is no candidate."""
    if logits.ndim != 2 or places.shape != logits.shape[:1]:
        found, number = tuple(places.shape), tuple(logits.shape)
        raise ValueError(f"labels: found shape {found} for logits {number}, allowed are [B] and [B, num_items]")
    if ((places < 0) | (places >= logits.shape[1])).any():
        raise ValueError(f"labels: found {(places + 1).tolist()}, allowed are item rows in [1, {logits.shape[1]}]")
    own = logits.gather(1, places[:, None])
    if not (own == -torch.inf).any():
        return logits
    return logits.scatter(1, places[:, None], own.clamp(min=torch.finfo(logits.dtype).min))


def rank_targets(
    model: nn.Module, dataset: TargetRows, *, batch_size: int = 256, k: int = 10, collator: Collator | None = None
) -> RankedTargets:
    """Rank every target of a dataset by a model, among all items but those that its row excludes.

    Memory is bounded for any number of items: batches become smaller where there are many. The model is in evaluation
    mode for the call.

    Args:
        model: called with `input_ids` and, if rows have it, `attention_mask`; its `logits` are `[B, num_items]`.
        dataset: such as the validation part of `NextItems`.
        batch_size: rows at once, at most.
        k: how many of the best items are kept.
        collator: makes batches of rows; that of `NextItems` by default.

    Raises:
        ValueError: logits of another shape, or with NaN.
    """
    device = next(model.parameters()).device
    training = model.training

    def score(batch: Batch) -> Tensor:
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask") if name in batch}
        logits: Tensor = model(**inputs).logits
        return logits

    model.eval()
    try:
        return rank_by_scores(score, dataset, batch_size=batch_size, k=k, collator=collator)
    finally:
        model.train(training)


def rank_by_scores(
    score: Callable[[Batch], Tensor],
    dataset: TargetRows,
    *,
    batch_size: int = 256,
    k: int = 10,
    collator: Collator | None = None,
) -> RankedTargets:
    """As `rank_targets`, by any scores `[B, num_items]` of a batch."""
    if collator is None:
        from hf_ext.data.interactions import NextItemsCollator

        collator = NextItemsCollator()
    num_items = len(dataset.split.item_counts) - 1
    rows = max(1, min(batch_size, _MOST_SCORES // num_items))
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=rows, collate_fn=collator)  # type: ignore[arg-type]
    found: list[NDArray[Any]] = []
    first = 0
    with torch.inference_mode():
        for batch in loader:
            ranked = _ranked(score(batch), batch, num_items, k)
            part = [getattr(ranked, field.name) for field in fields(RankedTargets)]
            # arrays for all are made once: small ones that stay, between scores that go, would keep their memory
            found = found or [np.empty((len(dataset), *values.shape[1:]), values.dtype) for values in part]
            for whole, values in zip(found, part, strict=True):
                whole[first : first + len(values)] = values
            first += len(part[0])
    return RankedTargets(*found)


def expected_ndcg(scores: Floats, probabilities: Floats, *, k: int = 10) -> float:
    """Mean NDCG@k, over rows, of an item drawn from their `probabilities` and ranked by `scores`, both `[B, N]`."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    discounts = 1 / np.log2(2 + np.arange(top.shape[1]))
    return float((np.take_along_axis(probabilities, top, axis=1) @ discounts).mean())


def _ranked(scores: Tensor, batch: Batch, num_items: int, k: int) -> RankedTargets:
    labels, excluded = (batch[name].to(scores.device) for name in ("labels", "exclude_ids"))
    if scores.shape != (len(labels), num_items):
        raise ValueError(f"scores: found shape {tuple(scores.shape)}, allowed is {[len(labels), num_items]}")
    own = labels[:, None] - 1
    places = torch.where(excluded > 0, excluded - 1, own)  # padding excludes the target, which comes back below
    candidates = scores.scatter(1, places, -torch.inf).scatter_(1, own, scores.gather(1, own))
    ranked = ranks_of_logits(candidates, labels, k)
    if ranked[0].isnan().any():
        raise ValueError("scores: found NaN, allowed are numbers")
    return RankedTargets(*(values.cpu().numpy() for values in ranked))
