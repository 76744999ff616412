"""A log of interactions as arrays: sorted by user and time, with items as rows of a catalogue."""

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hf_ext.data.interactions.items import Id, ItemTable

Integers = NDArray[np.int64]
Duplicates = Literal["keep", "first", "last", "error"]
DUPLICATES = get_args(Duplicates)
#: share of ties in time from which on it is said that the order of events is partly the file's
TIED = 0.05


@dataclass(frozen=True, eq=False)
class Interactions:
    """Who took what, in order of time. User `u` has the events `offsets[u]` to `offsets[u + 1]`.

    Args:
        user_ids: raw ids; user `u`, counted from 0, is `user_ids[u]`.
        items: the catalogue.
        offsets: int64 `[U + 1]`.
        item_rows: int64 `[N]`, rows of `items` (from 1), sorted by user, time and place in the file.
        times: int64 or float64 `[N]`, or None if the order of the file stands for time.
    """

    user_ids: list[Id]
    items: ItemTable
    offsets: Integers
    item_rows: Integers
    times: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.item_rows)

    @property
    def num_users(self) -> int:
        """How many users."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """How many items."""
        return len(self.items)

    @property
    def users(self) -> Integers:
        """The user of every event, int64 `[N]`."""
        return np.repeat(np.arange(self.num_users), np.diff(self.offsets))

    @property
    def tied_share(self) -> float:
        """Share of neighbouring events of a user that have the same time: their order is that of the file.

        0 without times, or if no user has two events.
        """
        neighbours = np.diff(self.users) == 0
        if self.times is None or not neighbours.any():
            return 0.0
        return float((np.diff(self.times) == 0)[neighbours].mean())

    @property
    def digest(self) -> str:
        """SHA-256 of who took what in which order, and of the catalogue's ids."""
        content = hashlib.sha256(repr((self.items.ids, self.user_ids)).encode())
        for values in (self.offsets, self.item_rows):
            content.update(values.tobytes())
        return content.hexdigest()


def build_interactions(
    users: pd.Series,
    items: pd.Series,
    times: NDArray[Any] | None,
    *,
    duplicates: Duplicates = "keep",
    min_events: int = 1,
) -> Interactions:
    """Sort events and number users and items by their raw ids.

    Args:
        users, items: raw ids of the events, `[N]`, all int64 or all str.
        times: numbers `[N]`, or None.
        duplicates, min_events: as for `load_interactions`.

    Raises:
        ValueError: duplicates that are an error, or nobody with `min_events` events.
    """
    user_codes, user_ids = pd.factorize(users, sort=True)
    keys = (user_codes,) if times is None else (times, user_codes)
    order = np.lexsort(keys)  # stable: equal times stay in the order of the file
    codes = pd.DataFrame({"user": user_codes[order], "item": items.to_numpy()[order]})
    if duplicates != "keep":
        repeated = codes.duplicated(keep="last" if duplicates == "last" else "first").to_numpy()
        if duplicates == "error" and repeated.any():
            user, item = codes[repeated].iloc[0]
            raise ValueError(
                f"duplicates: found {int(repeated.sum())} repeated events, the first of user "
                f"{user_ids[user]} and item {item}, allowed are none (duplicates='error')"
            )
        codes, order = codes[~repeated], order[~repeated]
    counts = np.bincount(codes["user"], minlength=len(user_ids))
    stays = counts >= min_events
    if not stays.any():
        raise ValueError(f"min_events: found {min_events}, allowed are at most {counts.max()}, the most of a user")
    kept = stays[codes["user"].to_numpy()]
    item_codes, item_ids = pd.factorize(codes["item"][kept], sort=True)
    interactions = Interactions(
        user_ids=np.asarray(user_ids)[stays].tolist(),
        items=ItemTable(np.asarray(item_ids).tolist()),
        offsets=np.concatenate([[0], np.cumsum(counts[stays])]).astype(np.int64),
        item_rows=item_codes.astype(np.int64) + 1,
        times=None if times is None else times[order[kept]],
    )
    _warn_of_ties(interactions)
    return interactions


def _warn_of_ties(interactions: Interactions) -> None:
    share = interactions.tied_share
    if share > TIED:
        warnings.warn(
            f"{share:.0%} of neighbouring events of a user have the same time, so that their order, and which comes "
            "last, is that of the file (is this the column of times?)",
            stacklevel=4,
        )
