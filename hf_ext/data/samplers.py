"""Orders in which samples are drawn."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike
from torch.utils.data import Sampler


class BalancedSampler(Sampler[int]):
    """Draws from all groups in turn, so that every batch has as many samples of each as of the others, or one more.

    A group that is smaller than others is gone through again, in a new order. Every process that is given the same
    seed and epoch draws the same order, which accelerate then shares out batch by batch.

    Args:
        group_ids: integers `[N]`, the group of every sample.
        seed: of the order.
        epoch: called at the start of every pass; the order depends on its value.
    """

    def __init__(self, group_ids: ArrayLike, *, seed: int = 0, epoch: Callable[[], int] = lambda: 0) -> None:
        ids = np.asarray(group_ids)
        self.members: Sequence[np.ndarray] = [np.flatnonzero(ids == group) for group in np.unique(ids)]
        self.length = len(ids)
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch()))
        rounds = -(-self.length // max(1, len(self.members)))
        columns = [_repeated(members, rounds, rng) for members in self.members]
        order = rng.permuted(np.stack(columns, axis=1), axis=1) if columns else np.empty(0, dtype=np.int64)
        yield from order.reshape(-1)[: self.length].tolist()


def _repeated(members: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` members, all of them once before any is drawn again."""
    passes = [rng.permutation(members) for _ in range(-(-length // len(members)))]
    return np.concatenate(passes)[:length]
