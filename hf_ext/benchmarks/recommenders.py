"""Random events and recommenders of any size, for benchmarks."""

from typing import Any

import numpy as np

from hf_ext.data.interactions import Interactions, ItemTable, SplitInteractions, leave_one_out
from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem


def events(users: int, items: int, each: int) -> SplitInteractions:
    """`each` events of every user, the same at every call; few items have most of them, as in shops."""
    rows = np.minimum(np.random.default_rng(0).zipf(1.2, users * each), items)
    table = ItemTable(list(range(1, items + 1)), [f"item {row}" for row in range(1, items + 1)])
    offsets = np.arange(users + 1, dtype=np.int64) * each
    return leave_one_out(Interactions(list(range(users)), table, offsets, rows.astype(np.int64), None))


def recommender(architecture: str, split: SplitInteractions, **config: Any) -> SequentialRecommenderForNextItem:
    """An untrained one of a split's items."""
    sizes = {"architecture": architecture, "num_items": split.num_items, "dropout": 0.0, **config}
    model = SequentialRecommenderForNextItem(SequentialRecommenderConfig(**sizes))
    model.set_items(split.interactions.items)
    return model
