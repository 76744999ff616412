"""Neighbourhoods of a few nodes in a large graph, drawn anew in each epoch and the same in any process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from hf_ext._arguments import Bounds, check_value
from hf_ext.data.graphs.geometric import Data
from hf_ext.data.hashing import hashed

Backend = Literal["own", "pyg", "auto"]
_FanOut = Annotated[int, Bounds(at_least=-1)]
_Seed = Annotated[int, Bounds(at_least=0)]


@dataclass(frozen=True, eq=False)
class Sampled:
    """The neighbourhood of some nodes, the seeds.

    Args:
        node_ids: int64 `[n]`, nodes of the whole graph: the seeds in their order, then others.
        edge_index: int64 `[2, m]`, from source to target, places in `node_ids`.
        edge_ids: int64 `[m]`, places in the whole graph's `edge_index`.
        edge_scale: float32 `[m]`, edges into the target in the whole graph, by those drawn: with it, sums over edges
            are right in the mean.
    """

    node_ids: Tensor
    edge_index: Tensor
    edge_ids: Tensor
    edge_scale: Tensor


class NeighborSampler:
    """Draws some edges into each seed, into their sources, and so on, in time and memory of what is drawn.

    A node with more edges than the fan-out gets so many without replacement, each edge with the same probability, by a
    hash of (seed, epoch, node): of an epoch, every node has one set of edges, in whichever batch it is, so that a
    seed's output does not depend on the other seeds, nor on the number of processes and workers, nor on resuming.
    Where fan-outs differ from layer to layer a node has one set for each distance from the seeds, and is in `node_ids`
    once for each distance at which it is reached.

    Args:
        edge_index: int64 `[2, M]`, of the whole graph, from source to target. Duplicates are edges of their own.
        num_nodes: `N`.
        neighbors: fan-out of each layer, the seeds' first; -1 for all.
        seed: of the draws.
        backend: "own"; "pyg", PyTorch Geometric's, which needs pyg-lib or torch-sparse and whose draws depend on the
            batch; or "auto", the latter where it is installed.

    Raises:
        ValueError: fan-outs that are none, or "pyg" where its own requirements are not installed.
    """

    def __init__(
        self, edge_index: Tensor, num_nodes: int, neighbors: Sequence[int], seed: int = 0, backend: Backend = "own"
    ) -> None:
        check_value("seed", seed, _Seed)
        check_value("backend", backend, Backend)
        if not isinstance(neighbors, list | tuple) or not neighbors or 0 in neighbors:
            raise ValueError(
                f"neighbors: found {neighbors!r}, allowed is a list of fan-outs, each >= 1, or -1 for all"
            )
        for fan_out in neighbors:
            check_value("neighbors", fan_out, _FanOut)
        self.neighbors, self.num_nodes, self.seed = tuple(map(int, neighbors)), num_nodes, seed
        self._sources, targets = edge_index.cpu()
        self._edges = targets.argsort(stable=True)
        self._starts = torch.nn.functional.pad(torch.bincount(targets, minlength=num_nodes).cumsum(0), (1, 0))
        self._pyg = _pyg_sampler(edge_index, num_nodes, self.neighbors, backend)

    def sample(self, seeds: Tensor, epoch: int = 0) -> Sampled:
        """The neighbourhood of distinct nodes, int64 `[s]`, in an epoch.

        Raises:
            ValueError: seeds that occur twice.
        """
        if repeated := len(seeds) - len(seeds.unique()):
            raise ValueError(f"seeds: found {repeated} repeated nodes, allowed are distinct ones")
        if self._pyg is not None:
            return self._sampled_by_pyg(seeds, epoch)
        # where fan-outs differ, a node at another distance is another one: its key has the distance in front
        step = self.num_nodes if len(set(self.neighbors)) > 1 else 0
        reached, edges, targets, sources, scales = [seeds], [], [], [], []
        for distance, fan_out in enumerate(self.neighbors, start=1):
            near, drawn, scale = self._draw(reached[-1] % self.num_nodes, fan_out, epoch)
            edges.append(drawn)
            scales.append(scale)
            targets.append(near + sum(map(len, reached[:-1])))
            sources.append(self._sources[drawn] + distance * step)
            fresh = sources[-1].unique()
            reached.append(fresh[~torch.isin(fresh, torch.cat(reached))])
        keys, places = torch.cat(reached).sort()
        local = places[torch.searchsorted(keys, torch.cat(sources))]
        return Sampled(
            torch.cat(reached) % self.num_nodes,
            torch.stack([local, torch.cat(targets)]),
            torch.cat(edges),
            torch.cat(scales),
        )

    def _draw(self, nodes: Tensor, fan_out: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Edges into nodes: the place of each one's target in `nodes`, the edges, and their scale.

        The list of a node's edges is turned by a random number of places, then one is drawn of each of `fan_out`
        parts of nearly the same length: every edge is in every place of the list as often as any other.
        """
        degrees = self._degrees(nodes)
        taken = degrees if fan_out < 0 else degrees.clamp(max=fan_out)
        near = torch.arange(len(nodes)).repeat_interleave(taken)
        part = torch.arange(len(near)) - (taken.cumsum(0) - taken)[near]
        degree, parts = degrees[near], taken[near]
        start = part * degree // parts
        place = start + self._random((part + 1) * degree // parts - start, epoch, nodes[near], part)
        turn = torch.where(parts < degree, self._random(degree, epoch, nodes[near]), 0)
        return near, self._edges[self._starts[nodes[near]] + (place + turn) % degree], (degree / parts).float()

    def _degrees(self, nodes: Tensor) -> Tensor:
        return self._starts[nodes + 1] - self._starts[nodes]

    def _random(self, below: Tensor, *keys: int | Tensor) -> Tensor:
        """Integers from 0 to `below`, exclusive, int64 `[m]`."""
        words = hashed(self.seed, *(key.numpy() if isinstance(key, Tensor) else key for key in keys))
        return torch.from_numpy((words % below.numpy().astype(np.uint64)).astype(np.int64))

    def _sampled_by_pyg(self, seeds: Tensor, epoch: int) -> Sampled:
        from torch_geometric.sampler import NodeSamplerInput

        # it draws from torch's own generator
        key = int(np.bitwise_xor.reduce(hashed(self.seed, epoch, seeds.numpy())) >> np.uint64(1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            found = self._pyg.sample_from_nodes(NodeSamplerInput(None, seeds))
        permutation = self._pyg.edge_permutation
        drawn = torch.bincount(found.col, minlength=len(found.node))
        scale = (self._degrees(found.node)[found.col] / drawn[found.col]).float()
        edges = found.edge if permutation is None else permutation[found.edge]
        return Sampled(found.node, torch.stack([found.row, found.col]), edges, scale)


def _pyg_sampler(edge_index: Tensor, num_nodes: int, neighbors: Sequence[int], backend: Backend) -> Any:
    from torch_geometric import sampler, typing

    installed = typing.WITH_PYG_LIB or typing.WITH_TORCH_SPARSE
    if backend == "pyg" and not installed:
        raise ValueError("backend: found 'pyg' without pyg-lib or torch-sparse, allowed is 'own', which needs neither")
    if backend == "own" or not installed:
        return None
    return sampler.NeighborSampler(Data(edge_index=edge_index.cpu(), num_nodes=num_nodes), list(neighbors))
