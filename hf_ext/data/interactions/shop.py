"""A simulated shop with a hidden common cause of history and next purchase, whose true effects are known exactly.

    group g (hidden) ----> history x ----> interest m (noisy) ----> next item y
           \\_____________________________________________________/^

P(m | x) = softmax(sharpness * z_m . v(x)), v(x) the mean vector of the last `WINDOW` items: every interest has some
probability after every history. P(y | m, g) = softmax(affinity * z_m . v_y + base_y + strength * push_gy). So m
carries all that x does to y, nothing hidden touches m, and x blocks the way from m back through g: the front door is
open, and

    P(y | do(x)) = sum_m P(m | x) sum_x' P(x') P(y | m, x') = sum_m P(m | x) sum_g P(g) P(y | m, g),

while P(y | x) has P(g | x) in place of P(g). The larger `strength`, the more a history tells of the group, and the
further the two are apart; at 0 they are the same.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray

from hf_ext._arguments import Bounds, Count, NonNegative, check_value
from hf_ext.data.interactions.items import ItemTable
from hf_ext.data.interactions.table import Integers, Interactions

Floats = NDArray[np.float64]
#: items of a history that an interest comes from
WINDOW = 5
_NOUNS = ("kettle", "lamp", "novel", "jacket", "drill", "teapot", "puzzle", "blanket", "guitar", "camera")
_LEAST, _MOST = 5, 400  # events of a user
_START, _YEAR, _DAY = 1_700_000_000, 365 * 86_400, 86_400


@dataclass(frozen=True, eq=False)
class ShopData:
    """What was bought in a simulated shop, and what its equations say.

    Histories are item rows, integers `[B, L]`, left-padded with 0, the newest last. Probabilities are float64
    `[B, num_items]`, where column `j` is row `j + 1`.

    Args:
        interactions: all purchases. Its catalogue holds also items that nobody bought.
        groups: the hidden group of every user, int64 `[U]`.
        group_shares: P(g), float64 `[G]`.
        interests: vectors z of interests, float64 `[M, D]`, with `sharpness` in them.
        vectors: v of items, float64 `[num_items + 1, D]`; that of row 0 is zero.
        outcomes: P(y | m, g), float64 `[M, G, num_items]`.
    """

    interactions: Interactions
    groups: Integers
    group_shares: Floats
    interests: Floats
    vectors: Floats
    outcomes: Floats

    def mediator(self, histories: Any) -> Floats:
        """P(m | x), the interest after histories, float64 `[B, M]`; all are equally likely after an empty one."""
        return _interest(self._rows(histories)[:, -WINDOW:], self.vectors, self.interests)

    def true_effect(self, histories: Any) -> Floats:
        """P(y | do(x)): what would be bought next if the histories had been assigned to users at random."""
        return self.mediator(histories) @ np.tensordot(self.outcomes, self.group_shares, axes=(1, 0))

    def observed(self, histories: Any, groups: Any = None) -> Floats:
        """P(y | x, g) for users with these histories and hidden groups, integers `[B]`; P(y | x) without groups.

        Raises:
            ValueError: groups that are none, or not one for each history.
        """
        histories = self._rows(histories)
        if groups is None:
            return self._expected(histories, self.group_posterior(histories))
        groups = np.asarray(groups)
        number = len(self.group_shares)
        if (
            groups.shape != histories.shape[:1]
            or groups.dtype.kind not in "iu"
            or not np.isin(groups, range(number)).all()
        ):
            raise ValueError(f"groups: found {groups!r}, allowed are {len(histories)} integers from 0 to {number - 1}")
        return self._expected(histories, np.eye(number)[groups])

    def group_posterior(self, histories: Any) -> Floats:
        """P(g | x), float64 `[B, G]`, for whole histories, from a user's first purchase on."""
        histories = self._rows(histories)
        log_likelihood = np.broadcast_to(np.log(self.group_shares), (len(histories), len(self.group_shares))).copy()
        padded = np.concatenate([np.zeros((len(histories), WINDOW), dtype=np.int64), histories], axis=1)
        for place in range(WINDOW, padded.shape[1]):
            bought = padded[:, place]
            interest = _interest(padded[:, place - WINDOW : place], self.vectors, self.interests)
            likelihood = np.einsum("bm,bmg->bg", interest, self.outcomes.transpose(2, 0, 1)[bought - 1])
            log_likelihood += np.where(bought[:, None] > 0, np.log(likelihood), 0)
        return _softmax(log_likelihood)

    def _expected(self, histories: Integers, groups: Floats) -> Floats:
        interest = self.mediator(histories)
        joint = (interest[:, :, None] * groups[:, None, :]).reshape(len(histories), -1)
        return joint @ self.outcomes.reshape(joint.shape[1], -1)

    def _rows(self, histories: Any) -> Integers:
        rows = np.asarray(histories)
        most = self.interactions.num_items
        if rows.ndim != 2 or rows.dtype.kind not in "iu" or (rows.size and not 0 <= rows.min() <= rows.max() <= most):
            raise ValueError(
                f"histories: found {rows.dtype} of shape {rows.shape}, allowed are integers [B, L] from 0 to {most}"
            )
        if (np.diff((rows > 0).astype(np.int8), axis=1) < 0).any():
            raise ValueError("histories: found 0 after an item, allowed is 0 on the left only")
        return rows.astype(np.int64)

    @cached_property
    def dataset(self) -> DatasetDict:
        """The purchases as rows with `user_id`, `item_id`, `timestamp` (seconds) and `title`: the split `train`."""
        log = self.interactions
        titles = np.asarray(log.items.titles)
        columns = {
            "user_id": np.asarray(log.user_ids)[log.users],
            "item_id": np.asarray(log.items.ids)[log.item_rows - 1],
        }
        rows = {**columns, "timestamp": log.times, "title": titles[log.item_rows - 1]}
        return DatasetDict({"train": Dataset.from_dict(rows)})


def simulate_shop(
    *,
    num_users: int = 1000,
    num_items: int = 500,
    mean_events: float = 60,
    num_groups: int = 4,
    num_interests: int = 8,
    strength: float = 2.0,
    pushed_share: float = 0.1,
    sharpness: float = 4.0,
    affinity: float = 3.0,
    tail: float = 0.7,
    seed: int = 0,
) -> ShopData:
    """Simulate purchases as the file's equations say.

    Users differ much in their activity (log-normal, from 5 to 400 events), and items in popularity (the r-th has
    base `-tail log r`). An item may be bought again.

    Args:
        num_users, num_items: how many.
        mean_events: of a user, about.
        num_groups: hidden groups of users, equally likely.
        num_interests: states of the mediator.
        strength: of the hidden groups' push on what is bought; 0 for none.
        pushed_share: the share of items that a group pushes.
        sharpness: how much an interest depends on the history; 0: not at all.
        affinity: how much a purchase depends on the interest.
        tail: how unequal the items' base popularity is.
        seed: draws everything.

    Raises:
        ValueError: values out of bounds.
    """
    counts = {"num_users": num_users, "num_groups": num_groups, "num_interests": num_interests, "num_items": num_items}
    for name, value in counts.items():
        check_value(name, value, Annotated[int, Bounds(at_least=2)] if name == "num_items" else Count)
    check_value("seed", seed, Annotated[int, Bounds(at_least=0)])
    check_value("mean_events", mean_events, Annotated[float, Bounds(at_least=_LEAST, at_most=_MOST)])
    check_value("pushed_share", pushed_share, Annotated[float, Bounds(at_least=0, at_most=1)])
    for name, weight in {"strength": strength, "sharpness": sharpness, "affinity": affinity, "tail": tail}.items():
        check_value(name, weight, NonNegative)
    rng = np.random.default_rng(seed)
    directions = _unit(rng.normal(size=(num_interests, max(8, num_interests))))
    category = rng.integers(num_interests, size=num_items)
    vectors = _unit(directions[category] + 0.25 * rng.normal(size=(num_items, directions.shape[1])))
    base = -tail * np.log(1 + rng.permutation(num_items))
    pushed = rng.random((num_groups, num_items)) < pushed_share
    groups = rng.integers(num_groups, size=num_users)
    outcomes = _softmax(affinity * (directions @ vectors.T)[:, None] + base + strength * pushed)
    vectors = np.concatenate([np.zeros((1, vectors.shape[1])), vectors])
    spread = 1.0
    drawn = rng.lognormal(np.log(mean_events) - spread**2 / 2, spread, size=num_users)
    lengths = np.clip(np.rint(drawn), _LEAST, _MOST).astype(np.int64)
    item_rows = _purchases(rng, lengths, groups, sharpness * directions, vectors, outcomes)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    titles = [f"{_NOUNS[number % len(_NOUNS)]} {item}" for item, number in enumerate(category, start=1)]
    return ShopData(
        Interactions(
            user_ids=list(range(1, num_users + 1)),
            items=ItemTable(list(range(1, num_items + 1)), titles),
            offsets=offsets,
            item_rows=item_rows,
            times=_times(rng, offsets),
        ),
        groups,
        np.full(num_groups, 1 / num_groups),
        sharpness * directions,
        vectors,
        outcomes,
    )


def _purchases(
    rng: np.random.Generator, lengths: Integers, groups: Integers, interests: Floats, vectors: Floats, outcomes: Floats
) -> Integers:
    """Item rows of all users, one after the other: the n-th purchase of all who have one is drawn at once."""
    offsets = np.cumsum(lengths) - lengths
    bought = np.zeros(int(lengths.sum()), dtype=np.int64)
    recent = np.zeros((len(lengths), WINDOW), dtype=np.int64)
    until = np.cumsum(outcomes, axis=-1)
    for step in range(lengths.max()):
        users = np.flatnonzero(lengths > step)
        interest = _drawn(rng, np.cumsum(_interest(recent[users], vectors, interests), axis=-1))
        rows = _drawn(rng, until[interest, groups[users]]) + 1
        bought[offsets[users] + step] = rows
        recent[users] = np.concatenate([recent[users, 1:], rows[:, None]], axis=1)
    return bought


def _drawn(rng: np.random.Generator, until: Floats) -> Integers:
    """One column of each row of cumulative probabilities, `[B]`."""
    return np.minimum((rng.random((len(until), 1)) * until[:, -1:] >= until).sum(axis=1), until.shape[1] - 1)


def _times(rng: np.random.Generator, offsets: Integers) -> Integers:
    """Seconds, strictly later for each purchase of a user; users begin within a year."""
    gaps = 1 + np.floor(rng.exponential(_DAY, size=offsets[-1])).astype(np.int64)
    gaps[offsets[:-1]] = rng.integers(_YEAR, size=len(offsets) - 1)
    total = np.concatenate([[0], np.cumsum(gaps)])
    return _START + total[1:] - np.repeat(total[offsets[:-1]], np.diff(offsets))


def _interest(recent: Integers, vectors: Floats, interests: Floats) -> Floats:
    """P(m | the last items), `[B, M]`, for item rows `[B, K]` of which 0 is none."""
    number = np.maximum((recent > 0).sum(axis=1, keepdims=True), 1)
    return _softmax(vectors[recent].sum(axis=1) / number @ interests.T)


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def shop(**options: Any) -> DatasetDict:
    """Purchases of a simulated shop, with `simulate_shop`'s options, as a data set: `user_id`, `item_id`, ..."""
    return simulate_shop(**options).dataset
