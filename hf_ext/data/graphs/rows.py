"""A graph as the rows of a data set: whole, as one row, or a row for each node that a loss is taken of."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_ext.data.graphs.checks import IGNORED, loss_labels
from hf_ext.data.graphs.geometric import Data
from hf_ext.data.graphs.sampling import Backend, NeighborSampler


class GraphRows(Dataset[dict[str, Tensor]]):
    """A whole graph as the only row: `x`, `edge_index`, `edge_weight` if it has such, and `labels`.

    Args:
        data: a graph that `check_graph` accepts. Nothing of it is copied.
        labels: `[N]`; by default those of the loss, `loss_labels(data)`.
    """

    def __init__(self, data: Data, labels: Tensor | None = None) -> None:
        self.data, self.labels = data, loss_labels(data) if labels is None else labels

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index not in (0, -1):
            raise IndexError(f"index: found {index}, allowed is 0, the graph")
        row = {"x": self.data.x, "edge_index": self.data.edge_index}
        if "edge_weight" in self.data:
            row["edge_weight"] = self.data.edge_weight
        return {**row, "labels": self.labels}


class SampledRows(Dataset[dict[str, Tensor]]):
    """A row for each node of the loss, known positives and unlabelled ones: `node`, int64; see `GraphCollator`.

    The epoch, by which neighbourhoods are drawn, is what `set_epoch` was told last, in worker processes as well.

    Args:
        data: a graph that `check_graph` accepts.
        neighbors, seed, backend: as for `NeighborSampler`.
        epoch: the first one.

    Attributes:
        nodes: of the rows, int64.
        labels: of all nodes, int64 `[N]`, as `loss_labels` gives them.
        described_as: in words, for a card.
    """

    def __init__(
        self, data: Data, neighbors: Sequence[int], seed: int = 0, epoch: int = 0, backend: Backend = "own"
    ) -> None:
        self.data, self.labels = data, loss_labels(data)
        self.described_as = f"nodes of a graph of {len(data.x)} nodes and {data.edge_index.shape[1]} edges"
        self.nodes = (self.labels != IGNORED).nonzero().flatten()
        self.sampler = NeighborSampler(data.edge_index, len(data.x), neighbors, seed, backend)
        self._epoch = torch.tensor(epoch).share_memory_()  # workers that stay alive see it change

    @property
    def epoch(self) -> int:
        """What neighbourhoods are drawn by."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Let neighbourhoods be those of an epoch from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"node": self.nodes[index]}

    def batch(self, nodes: Tensor) -> dict[str, Tensor]:
        """The neighbourhood of distinct nodes, int64 `[s]`, as `GraphCollator` describes it."""
        sampled = self.sampler.sample(nodes, self.epoch)
        labels = torch.full_like(sampled.node_ids, IGNORED)
        labels[: len(nodes)] = self.labels[nodes]
        return {"x": self.data.x[sampled.node_ids], "labels": labels, **vars(sampled)}


class GraphCollator:
    """Makes batches of the rows of `GraphRows` or `SampledRows`.

    Of the former: the graph as it is, without a dimension of the batch. Of the latter: what is drawn around the rows'
    nodes, `n` nodes with the rows' first, and `m` edges:

    | name | is |
    |---|---|
    | `x` | features, `[n, F]` |
    | `edge_index` | int64 `[2, m]`, places in `x` |
    | `labels` | int64 `[n]`: those of the rows' nodes, -100 for all others |
    | `node_ids`, `edge_ids` | int64 `[n]` and `[m]`: places in the whole graph |
    | `edge_scale` | float32 `[m]`, see `Sampled` |

    Loaders that fill up the batches of several processes repeat rows; a graph or node that is repeated counts once.

    Args:
        rows: the data set of sampled rows, if there are such.

    Raises:
        ValueError: (when called) several graphs, or nodes without the data set that they are of.
    """

    def __init__(self, rows: SampledRows | None = None) -> None:
        self.rows = rows

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        if "node" in rows[0]:
            if self.rows is None:
                raise ValueError("rows: found None and a batch of nodes, allowed is their SampledRows")
            nodes = dict.fromkeys(int(row["node"]) for row in rows)
            return self.rows.batch(torch.tensor(list(nodes)))
        if any(row["x"] is not rows[0]["x"] for row in rows):
            raise ValueError(f"rows: found {len(rows)} graphs in a batch, allowed is one")
        return dict(rows[0])
