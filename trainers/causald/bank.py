"""A bank of training histories: what stands for the prior of histories in the front-door adjustment."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_ext.trainers.causald.candidates import read_rows


class Bank(NamedTuple):
    """Histories `input_ids`, int64 `[K, L]`, and how much each counts, `prior`, float64 `[K]`, which adds up to 1."""

    input_ids: NDArray[np.int64]
    prior: NDArray[np.float64]


def draw_bank(dataset: Any, size: int, *, method: str = "users", seed: int = 0) -> Bank:
    """Draw a bank from training rows.

    Args:
        dataset: of training rows with `input_ids`, int64 `[L]`; but for `"interactions"` it says in `users`, `[N]`,
            whose they are.
        size: K.
        method: `"users"`: a row of each of K users, all alike to be drawn; `"interactions"`: K rows, all alike to be
            drawn; `"kmeans"`: the latest histories of all users, as shares of items, in K clusters
            (`MiniBatchKMeans`), of each the one nearest to its centre, which counts as the share of its users.
        seed: of all draws.

    Raises:
        ValueError: no users where they are needed, or fewer histories than K.
    """
    random = np.random.default_rng(seed)
    if method == "interactions":
        _check_size(size, len(dataset), "training rows")
        return Bank(_histories(dataset, random.choice(len(dataset), size, replace=False)), np.full(size, 1 / size))
    users = getattr(dataset, "users", None)
    if users is None:
        raise ValueError(
            f"causald_bank_method: found {method!r} and a train_dataset that does not say whose its rows are "
            "(users), allowed is 'interactions'"
        )
    order = np.argsort(np.asarray(users), kind="stable")
    firsts = np.flatnonzero(np.diff(np.asarray(users)[order], prepend=-1))
    counts = np.diff(firsts, append=len(order))
    _check_size(size, len(firsts), "users with training rows")
    if method == "kmeans":
        return _clustered(_histories(dataset, order[firsts + counts - 1]), size, seed)
    drawn = random.choice(len(firsts), size, replace=False)
    rows = order[firsts[drawn] + random.integers(counts[drawn])]
    return Bank(_histories(dataset, rows), np.full(size, 1 / size))


def _check_size(size: int, available: int, what: str) -> None:
    if size > available:
        raise ValueError(f"causald_bank_size: found {size}, allowed are at most {available}, the {what}")


def _histories(dataset: Any, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    found = read_rows(dataset, rows.tolist())
    return np.stack([np.asarray(row["input_ids"], dtype=np.int64) for row in found])


def _clustered(histories: NDArray[np.int64], size: int, seed: int) -> Bank:
    from scipy.sparse import coo_array
    from sklearn.cluster import MiniBatchKMeans  # takes its time

    rows, places = np.nonzero(histories)
    lengths = np.maximum(np.bincount(rows, minlength=len(histories)), 1)
    cells = rows.astype(np.int32), histories[rows, places].astype(np.int32)  # scikit-learn takes no larger ones
    shares = coo_array((1 / lengths[rows], cells), shape=(len(histories), int(histories.max()) + 1)).tocsr()
    found = MiniBatchKMeans(size, random_state=seed, n_init=3).fit(shares)
    distances = found.transform(shares)
    members = np.bincount(found.labels_, minlength=size)
    kept = np.flatnonzero(members)  # a cluster may have lost all of its members
    nearest = [np.where(found.labels_ == one, distances[:, one], np.inf).argmin() for one in kept]
    return Bank(histories[nearest], members[kept] / members.sum())
