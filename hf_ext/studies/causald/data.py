"""Data of CausalD's study: simulated shops, whose true effects are known, and logs of ratings that a user brings."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import DatasetDict
from numpy.typing import NDArray

from hf_ext.data import load
from hf_ext.data.interactions import (
    Interactions,
    NextItems,
    ShopData,
    SplitInteractions,
    leave_one_out,
    load_interactions,
    simulate_shop,
)

LENGTH = 20  # of a history that models see
EMBEDDED = "shop"
LIKED = 4.0  # ratings from which on something counts as taken
RARE = 5  # events that an item of a user's log must have
USERS = 400  # that a seed draws of a log
COLUMNS = ("user_id", "item_id", "rating", "timestamp")
SIZE: dict[str, Any] = {"num_users": 500, "num_items": 300, "mean_events": 40, "sharpness": 8.0}
#: what is simulated, by the key of a data set
SHOPS: dict[str, dict[str, Any]] = {
    "shop-none": {"strength": 0.0},
    "shop-medium": {"strength": 2.0},
    "shop-strong": {"strength": 4.0},
    "shop-sparse": {"strength": 2.0, "mean_events": 12},
    "shop-skewed": {"strength": 2.0, "mean_events": 80},
}
#: of the skewed shop: the share of users that keep but their first events, and how many these are at least and most
_CUT, _FEW = 0.8, (6, 12)


@dataclass(frozen=True)
class World:
    """Interactions and their parts; of a shop also what its equations say."""

    split: SplitInteractions
    shop: ShopData | None = None

    def rows(self, part: Any, **options: Any) -> NextItems:
        """Rows of a part, as models see them."""
        return NextItems(self.split, part, max_length=LENGTH, **options)

    def histories(self) -> NDArray[np.int64]:
        """Of every user with a test target all that came before the first one, left-padded, `[U, L]`."""
        offsets, ends = self.split.interactions.offsets, self.split.validation_ends
        tested = np.flatnonzero((np.diff(offsets) > ends) & (ends > 0))
        found = np.zeros((len(tested), int(ends[tested].max())), dtype=np.int64)
        for row, user in zip(found, tested, strict=True):
            row[-ends[user] :] = self.split.interactions.item_rows[offsets[user] : offsets[user] + ends[user]]
        return found


def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for data that cannot be used under this name."""
    table = data.get("train")
    missing = set(COLUMNS) - set(table.column_names if table is not None else ())
    if name not in SHOPS and missing:
        raise ValueError(
            f"--data: found no column {', '.join(sorted(missing))} in {name}, allowed is a table with "
            f"{', '.join(COLUMNS)}"
        )


def open_world(name: str, data: str, seed: int, *, quick: bool = False) -> World:
    """The data of a seed: another shop, or other users of a log.

    Raises:
        ValueError: something else in a shop's place.
    """
    if name not in SHOPS:
        interactions = _log(data, seed, users=60 if quick else USERS)
        return World(leave_one_out(interactions, test=2))
    if data != EMBEDDED:
        raise ValueError(f"--data: found {data!r} in place of {name}, allowed is none: it is simulated")
    options = {**SIZE, **SHOPS[name]} | ({"num_users": 100} if quick else {})
    shop = simulate_shop(**options, seed=seed)
    if name == "shop-skewed":
        shop = replace(shop, interactions=_skewed(shop.interactions, seed))
    return World(leave_one_out(shop.interactions, test=2), shop)


def _log(data: str, seed: int, users: int) -> Interactions:
    table = load(data)["train"].to_pandas()
    table = table[table["rating"] >= LIKED]
    table = table[table.groupby("item_id")["item_id"].transform("size") >= RARE]
    table = table[table.groupby("user_id")["user_id"].transform("size") >= RARE]
    known = np.sort(table["user_id"].unique())
    drawn = np.random.default_rng(seed).permutation(known)[:users]
    return load_interactions(table[table["user_id"].isin(drawn)])


def _skewed(log: Interactions, seed: int) -> Interactions:
    """The same with but the first events of most users."""
    random = np.random.default_rng([seed, 1])
    counts = np.diff(log.offsets)
    few = np.where(random.random(len(counts)) < _CUT, random.integers(_FEW[0], _FEW[1] + 1, len(counts)), counts)
    kept = np.minimum(counts, few)
    stays = np.arange(len(log)) - np.repeat(log.offsets[:-1], counts) < np.repeat(kept, counts)
    times = None if log.times is None else log.times[stays]
    offsets = np.concatenate([[0], np.cumsum(kept)])
    return replace(log, offsets=offsets, item_rows=log.item_rows[stays], times=times)
