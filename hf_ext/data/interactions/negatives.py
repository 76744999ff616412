"""Negatives that depend on seed, epoch, row and place alone: the same in any process and order, and on resuming."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hf_ext.data.hashing import Words, hashed
from hf_ext.data.interactions.splits import SplitInteractions
from hf_ext.data.interactions.table import Integers

Negatives = Literal["uniform", "popularity"]
NEGATIVES = get_args(Negatives)
#: times that a negative out of the user's own history is drawn again before it is let be
REDRAWS = 8


class NegativeSampler:
    """Draws items other than the target, from the training events alone.

    Args:
        split: whose training counts and histories are used.
        number: of negatives.
        negatives: "uniform" over the catalogue, or by "popularity", the number of training events.
        avoid_history: draw again, up to `REDRAWS` times, what the user has among their training events.
        seed: of the draws.

    Raises:
        ValueError: fewer than two items that could be drawn.
    """

    def __init__(
        self, split: SplitInteractions, number: int, negatives: Negatives, *, avoid_history: bool, seed: int
    ) -> None:
        self.split, self.number, self.negatives, self.seed = split, number, negatives, seed
        weights = split.item_counts[1:] if negatives == "popularity" else np.ones(split.num_items, dtype=np.int64)
        if np.count_nonzero(weights) < 2:
            raise ValueError(
                f"num_negatives: found {number} with {np.count_nonzero(weights)} items to draw from "
                f"(negatives={negatives!r}), allowed are at least 2 items"
            )
        self._until = np.concatenate([[0], np.cumsum(weights)])  # of rows 0 to num_items: draws below belong to them
        self._owned = self._pairs() if avoid_history else None
        share = weights / weights.sum()
        with np.errstate(divide="ignore"):  # items that are never drawn
            log_q = np.log(share) + number * np.log1p(-share)
        self._log_q = np.concatenate([[0], log_q]).astype(np.float32)

    def draw(self, rows: Integers, users: Integers, targets: Integers, epoch: int) -> Integers:
        """Negatives, int64 `[B, number]`, for rows `[B]` of a data set with their users and targets `[B]`."""
        places = np.arange(self.number)
        drawn = self._draw(hashed(self.seed, epoch, rows[:, None], places), targets[:, None])
        for again in range(1, REDRAWS + 1 if self._owned is not None else 1):
            row, place = np.nonzero(self._has(users[:, None], drawn))
            if not len(row):
                break
            words = hashed(self.seed, epoch, rows[row], places[place], again)
            drawn[row, place] = self._draw(words, targets[row])
        return drawn

    def log_q(self, candidates: Integers) -> NDArray[np.float32]:
        """What is to be subtracted from logits, of the same shape as the candidates.

        With probability q of a draw, `log q + number log(1 - q)`: so the softmax over target and negatives is that
        over the catalogue, given which items are in the row. The last term is there since the target is never drawn:
        a popular item is found less often among negatives than its q says.
        """
        return self._log_q[candidates]

    def _draw(self, words: Words, targets: Integers) -> Integers:
        """The items that random words stand for, among all but the targets."""
        start, end = self._until[targets - 1], self._until[targets]
        fraction = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        draws = (fraction * (self._until[-1] - (end - start))).astype(np.int64)
        draws += np.where(draws >= start, end - start, 0)
        return np.searchsorted(self._until, draws, side="right") if self.negatives == "popularity" else draws + 1

    def _pairs(self) -> Integers:
        events = self.split.in_training
        interactions = self.split.interactions
        return np.sort(self._key(interactions.users[events], interactions.item_rows[events]))

    def _key(self, users: Integers, items: Integers) -> Integers:
        return users * (self.split.num_items + 1) + items

    def _has(self, users: Integers, items: Integers) -> NDArray[np.bool_]:
        keys, owned = self._key(users, items), self._owned
        assert owned is not None
        places = np.minimum(np.searchsorted(owned, keys), len(owned) - 1)
        return owned[places] == keys
