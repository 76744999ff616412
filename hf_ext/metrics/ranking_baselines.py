"""What a model of the next item has to beat: the most popular items, and the neighbours of a user's items.

Both are ranked as `rank_targets` ranks, and learn from training events alone.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from hf_ext.metrics.rankings import Batch, Collator, Integers, RankedTargets, Split, TargetRows, rank_by_scores

#: products of two events that are held at once while similarities are computed
_MOST_PRODUCTS = 2**24


def popularity_ranks(dataset: TargetRows, *, k: int = 10, collator: Collator | None = None) -> RankedTargets:
    """Rank by the number of training events, the same for all users.

    Args:
        dataset, k, collator: as in `rank_targets`.
    """
    counts = torch.as_tensor(dataset.split.item_counts[1:]).double()

    def score(batch: Batch) -> Tensor:
        return counts.expand(len(batch["labels"]), -1)

    return rank_by_scores(score, dataset, k=k, collator=collator)


def item_knn_ranks(
    dataset: TargetRows, *, neighbours: int = 100, k: int = 10, collator: Collator | None = None
) -> RankedTargets:
    """Rank by similarity to the user's earlier items: Deshpande and Karypis, 2004, doi:10.1145/963770.963776.

    The similarity of two items is the cosine of who has them in the training data. Of every item the most similar ones
    are kept, and an item's score is the sum of its similarities to a row's earlier items (its `exclude_ids`: all that
    a model may see, also events for validation in the test). Items without any have the score 0.

    Args:
        dataset, k, collator: as in `rank_targets`.
        neighbours: how many similar items are kept of every item, >= 1.

    Raises:
        ValueError: neighbours below 1.
    """
    if not neighbours >= 1:
        raise ValueError(f"neighbours: found {neighbours!r}, allowed are integers >= 1")
    similarities = _similarities(dataset.split, neighbours)

    def score(batch: Batch) -> Tensor:
        earlier = batch["exclude_ids"].numpy()
        rows, places = np.nonzero(earlier)
        histories = _binary(rows, earlier[rows, places] - 1, (len(earlier), similarities.shape[0]))
        return torch.from_numpy((histories @ similarities).toarray())

    return rank_by_scores(score, dataset, k=k, collator=collator)


def _binary(rows: Integers, columns: Integers, shape: tuple[int, int]) -> sparse.csr_array:
    """A matrix with 1 at some places, however often each is named."""
    matrix = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def _similarities(split: Split, neighbours: int) -> sparse.csr_array:
    """Of every item (a row) its nearest ones."""
    offsets, items = split.interactions.offsets, split.interactions.item_rows
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    training = np.arange(len(items)) - offsets[users] < split.train_ends[users]
    events = _binary(users[training], items[training] - 1, (len(offsets) - 1, len(split.item_counts) - 1))
    lengths = np.sqrt(np.asarray(events.sum(axis=0)).ravel())
    unit = events @ sparse.diags_array(np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0))
    by_item = unit.T.tocsr()
    blocks = _blocks(events.T @ np.asarray(events.sum(axis=1)).ravel())
    return sparse.vstack([_nearest(by_item[block] @ unit, block.start, neighbours) for block in blocks], format="csr")


def _blocks(costs: np.ndarray) -> Iterator[slice]:
    """Neighbouring items whose costs sum to about what fits, or single ones."""
    filled = (np.cumsum(costs) // _MOST_PRODUCTS).astype(np.int64)
    ends = np.append(np.flatnonzero(np.diff(filled)) + 1, len(costs))
    return (slice(start, end) for start, end in zip(np.append(0, ends[:-1]), ends, strict=True))


def _nearest(block: sparse.csr_array, first: int, neighbours: int) -> sparse.csr_array:
    """The largest entries of every row, but not an item itself; among equal ones the first items."""
    block = block.tocsr()
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    others = block.indices != rows + first
    rows, columns, values = rows[others], block.indices[others], block.data[others]
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    near = np.arange(len(rows)) - np.searchsorted(rows, rows) < neighbours
    return sparse.csr_array((values[near], (rows[near], columns[near])), shape=block.shape)
