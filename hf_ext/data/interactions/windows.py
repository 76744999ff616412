"""Windows of an array of events, by index."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_ext.data.interactions.table import Integers


@dataclass(frozen=True, eq=False)
class Windows:
    """Histories as places among all events: row `i` sees events before `ends[i]`, the last target, from `starts[i]`.

    Args:
        users: of each row, int64 `[N]`.
        starts: first event of the row's user, `[N]`.
        ends: the event that is the (last) target, `[N]`.
        counted: how many of the newest places of a window have a target that counts there, `[N]`.
    """

    users: Integers
    starts: Integers
    ends: Integers
    counted: Integers

    def places(self, rows: Integers, length: int) -> tuple[Integers, NDArray[np.bool_]]:
        """The events at each place of windows, `[B, length]`, newest last, and at which places there are any."""
        places = self.ends[rows][:, None] + np.arange(-length, 0)
        known = places >= self.starts[rows][:, None]
        return np.where(known, places, 0), known


def one_window_each(first: Integers, starts: Integers, ends: Integers) -> Windows:
    """A window for every event in [starts, ends) of a user, `[U]` each, that is not the user's first, at `first`."""
    starts = np.maximum(starts, first + 1)
    counts = np.maximum(ends - starts, 0)
    users = np.repeat(np.arange(len(counts)), counts)
    targets = starts[users] + _within(counts)
    return Windows(users, first[users], targets, np.ones_like(users))


def every_window(first: Integers, ends: Integers, length: int) -> Windows:
    """Windows in which every event in [first, ends) of a user but the first is a target exactly once.

    From the newest event backwards, half a window apart. Each counts the targets of its newer half; the oldest all.
    """
    step = max(length // 2, 1)
    targets = np.maximum(ends - first - 1, 0)
    counts = np.where(targets > 0, 1 + -(-np.maximum(targets - length, 0) // step), 0)
    users = np.repeat(np.arange(len(counts)), counts)
    back = _within(counts)  # 0 for a user's newest window
    oldest = back == counts[users] - 1
    return Windows(users, first[users], ends[users] - 1 - back * step, np.where(oldest, length, step))


def _within(counts: Integers) -> Integers:
    """0, 1, ... for each of so many in a row: `[3, 2]` gives `[0, 1, 2, 0, 1]`."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
