"""Random bits that depend on integer keys alone: the same in any process and order, and on resuming."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def hashed(*keys: Any) -> Words:
    """64 random bits for every combination of integer keys, broadcast against each other: splitmix64, chained."""
    words: Any = np.zeros(1, dtype=np.uint64)
    for key in keys:
        words = _mixed(words ^ np.asarray(key, dtype=np.int64).astype(np.uint64))
    return words


def _mixed(words: Words) -> Words:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
