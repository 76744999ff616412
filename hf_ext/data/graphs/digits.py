"""A real graph that needs no download: handwritten digits, joined to those that look most alike."""

from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_ext._arguments import Bounds, Count, check_value
from hf_ext.data.graphs.geometric import Data

#: the name that `load_graph` knows
DIGITS_GRAPH = "digits-graph"
_CrossEdges = Annotated[float, Bounds(at_least=0, below=1)]
_Seed = Annotated[int, Bounds(at_least=0)]
_REDRAWS = 200
_Pairs = NDArray[np.int64]


def digits_graph(*, neighbors: int = 5, cross_edges: float | None = 0.3, seed: int = 0) -> Data:
    """The 1797 digits (8 x 8 pixels) that scikit-learn carries, each joined to its nearest ones.

    About 3 % of these edges join two different digits. To reach the share asked for, edges within a digit are drawn,
    and one end of each is moved to a node of another digit.

    Args:
        neighbors: of each digit, by Euclidean distance of pixels; an edge is there if either end has the other.
        cross_edges: share of edges between different digits; one minus it is the edge homophily. None: as they are.
        seed: of the edges that are moved.

    Returns:
        `x`, float32 `[1797, 64]` in [0, 1]; `edge_index`, int64, both directions, sorted, without self-loops and
        duplicates; `y`, int64, the digit.

    Raises:
        ValueError: options out of bounds, or a share below that of the neighbours themselves.
    """
    check_value("neighbors", neighbors, Count)
    check_value("cross_edges", cross_edges, _CrossEdges | None)
    check_value("seed", seed, _Seed)
    pixels, classes = _digits()
    if neighbors >= len(classes):
        raise ValueError(f"neighbors: found {neighbors}, allowed are at most {len(classes) - 1}")
    pairs = _nearest(pixels, neighbors)
    if cross_edges is not None:
        pairs = _mixed(pairs, classes, cross_edges, np.random.default_rng(seed))
    both = np.concatenate([pairs, pairs[::-1]], axis=1)
    both = both[:, np.lexsort((both[1], both[0]))]
    return Data(
        x=torch.from_numpy(pixels), edge_index=torch.from_numpy(both), y=torch.from_numpy(classes.astype(np.int64))
    )


def _digits() -> tuple[NDArray[np.float32], NDArray[Any]]:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return (pixels / 16).astype(np.float32), classes


def _nearest(pixels: NDArray[np.float32], neighbors: int) -> _Pairs:
    """Pairs of nodes, `[2, E]`, the lower one first."""
    from sklearn.neighbors import kneighbors_graph

    near = kneighbors_graph(pixels, neighbors).tocoo()
    pairs = np.sort(np.stack([near.row, near.col]).astype(np.int64), axis=0)
    return np.unique(pairs, axis=1)


def _mixed(pairs: _Pairs, classes: NDArray[Any], share: float, rng: np.random.Generator) -> _Pairs:
    """The pairs, of which some have another end, so that a share of them is between classes."""
    within = np.flatnonzero(classes[pairs[0]] == classes[pairs[1]])
    number = round(share * pairs.shape[1]) - (pairs.shape[1] - len(within))
    if number < 0:
        least = 1 - len(within) / pairs.shape[1]
        raise ValueError(
            f"cross_edges: found {share}, allowed are at least {least:.3f}, the share of the neighbours themselves "
            "(None)"
        )
    moved = rng.choice(within, number, replace=False)
    stays = np.delete(pairs, moved, axis=1)
    size = len(classes)
    taken, ends = stays[0] * size + stays[1], pairs[0, moved]
    for _ in range(_REDRAWS):  # of those whose new end is of their own class, or is joined to them already
        if not len(ends):
            break
        others = rng.integers(size, size=len(ends))
        keys = np.minimum(ends, others) * size + np.maximum(ends, others)
        good = (classes[ends] != classes[others]) & ~np.isin(keys, taken)
        good &= np.isin(np.arange(len(keys)), np.unique(keys, return_index=True)[1])
        taken, ends = np.concatenate([taken, keys[good]]), ends[~good]
    if len(ends):
        raise ValueError(f"cross_edges: found {share}, allowed is a lower one, or fewer neighbors")
    taken.sort()
    return np.stack([taken // size, taken % size])
