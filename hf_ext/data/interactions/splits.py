"""Splits by time: a user's events are training, then validation, then test."""

import hashlib
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

from hf_ext._arguments import Bounds, ShareOrZero, check_value
from hf_ext.data.interactions.table import Integers, Interactions
from hf_ext.functional import user_groups

PARTS = ("train", "validation", "test")
_Number = Annotated[int, Bounds(at_least=0)]


@dataclass(frozen=True, eq=False)
class SplitInteractions:
    """Interactions of which every user's first are for training, the next for validation, the last for the test.

    What it says of users and items, it says from the training events alone.

    Args:
        interactions: all events.
        train_ends, validation_ends: int64 `[U]`, relative to `interactions.offsets[u]`: user `u` has training events
            up to the first and validation events from there to the second; all later ones are for the test.
        method: how it was made, in words.
    """

    interactions: Interactions
    train_ends: Integers
    validation_ends: Integers
    method: str

    @property
    def num_users(self) -> int:
        """How many users."""
        return self.interactions.num_users

    @property
    def num_items(self) -> int:
        """How many items, also of those that occur in no training event."""
        return self.interactions.num_items

    @property
    def activity(self) -> Integers:
        """The number of training events of every user, int64 `[U]`."""
        return self.train_ends

    @cached_property
    def in_training(self) -> NDArray[np.bool_]:
        """Which events are for training, `[N]`."""
        starts = self.interactions.offsets[:-1]
        places = np.arange(len(self.interactions)) - np.repeat(starts, np.diff(self.interactions.offsets))
        return places < np.repeat(self.train_ends, np.diff(self.interactions.offsets))

    @cached_property
    def item_counts(self) -> Integers:
        """The number of training events of every item by row, int64 `[num_items + 1]`; 0 for row 0."""
        rows = self.interactions.item_rows[self.in_training]
        return np.bincount(rows, minlength=self.num_items + 1).astype(np.int64)

    def bounds(self, part: str) -> tuple[Integers, Integers]:
        """Where a part begins and ends for every user, int64 `[U]` each, as places among all events."""
        starts = self.interactions.offsets[:-1]
        ends = (starts + self.train_ends, starts + self.validation_ends, self.interactions.offsets[1:])
        number = PARTS.index(part)
        return (starts if number == 0 else ends[number - 1]), ends[number]

    def groups(self, head_fraction: float = 0.2) -> Integers:
        """1 for head users, by training activity, and 0 for the others, int64 `[U]`.

        See `hf_ext.functional.user_groups`: users who are equally active are never separated.

        Raises:
            ValueError: a share outside [0, 1].
        """
        check_value("head_fraction", head_fraction, ShareOrZero)
        return user_groups(torch.from_numpy(self.activity), head_fraction=head_fraction).numpy()

    @property
    def digest(self) -> str:
        """SHA-256 of events and split."""
        content = hashlib.sha256(self.interactions.digest.encode())
        for values in (self.train_ends, self.validation_ends):
            content.update(values.tobytes())
        return content.hexdigest()


def leave_one_out(interactions: Interactions, *, validation: int = 1, test: int = 1) -> SplitInteractions:
    """Every user's last events are for the test, those before for validation.

    A user with `validation + test` events or fewer has training events only; a warning says how many have. In global
    time this leaks between users: one user's training events may be later than another's test (see `split_by_time`).

    Raises:
        ValueError: numbers below 0, or no user with enough events.
    """
    check_value("validation", validation, _Number)
    check_value("test", test, _Number)
    counts = np.diff(interactions.offsets)
    short = counts <= validation + test
    if short.all():
        raise ValueError(
            f"interactions: found at most {counts.max()} events of a user, allowed are at least "
            f"{validation + test + 1}: one for training, {validation} for validation and {test} for the test"
        )
    if short.any():
        warnings.warn(
            f"{short.sum()} of {len(short)} users have {validation + test} events or fewer, and are in training only",
            stacklevel=2,
        )
    train_ends = np.where(short, counts, counts - validation - test)
    return SplitInteractions(
        interactions, train_ends, np.where(short, counts, counts - test), f"leave one out ({validation}, {test})"
    )


def split_by_time(interactions: Interactions, *, validation: float = 0.1, test: float = 0.1) -> SplitInteractions:
    """One moment for all users: events from then on are for the test, those in a span before for validation.

    The moments are such that about these shares of all events lie behind them; events of the same time are never
    separated. Users without training events stay: they are new, with what they did before the target as history; a
    target with nothing before it makes no row for evaluation. A warning says how many users have training events only.

    Raises:
        ValueError: shares outside [0, 1] or not below 1 together, interactions without times, or no training events.
    """
    check_value("validation", validation, ShareOrZero)
    check_value("test", test, ShareOrZero)
    if validation + test >= 1:
        raise ValueError(f"validation: found {validation} beside test={test}, allowed are less than 1 together")
    if interactions.times is None:
        raise ValueError("interactions: found no times, allowed are such with times (time_column)")
    moments = np.sort(interactions.times)
    held_out = [round(len(moments) * share) for share in (validation + test, test)]
    first, second = (moments[len(moments) - number] if number else None for number in held_out)
    split = SplitInteractions(
        interactions,
        _before(interactions, first),
        _before(interactions, second),
        f"time ({validation:g}, {test:g})",
    )
    if not split.train_ends.any():
        raise ValueError(
            f"interactions: found {np.mean(moments == moments[0]):.0%} of the events at the earliest time, which "
            "leaves none for training, allowed are smaller shares of validation and test"
        )
    only_training = int((split.train_ends == np.diff(interactions.offsets)).sum())
    if only_training and (validation or test):
        warnings.warn(f"{only_training} of {split.num_users} users have training events only", stacklevel=2)
    return split


def _before(interactions: Interactions, moment: float | None) -> Integers:
    """How many of every user's events are earlier than a moment, `[U]`; all, if there is none."""
    if moment is None or interactions.times is None:
        return np.diff(interactions.offsets)
    earlier = np.concatenate([[0], np.cumsum(interactions.times < moment)])
    return np.diff(earlier[interactions.offsets])
