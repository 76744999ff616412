"""The graph that is trained on: checked, with positives held out, as tensors on the device."""

import copy
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_ext.data.graphs import check_graph, loss_labels, node_roles, without_loops


@dataclass(frozen=True, eq=False)
class PUGraph:
    """Tensors of a graph with N nodes, without self-loops.

    Args:
        x: `[N, F]`.
        edge_index: int64 `[2, M]`.
        edge_weight: `[M]`, those given, or None.
        labels: of the loss, int64 `[N]`: 1 known positives, 0 unlabelled, held out too, -100 others.
        held_out: bool `[N]`, known positives that the loss takes for unlabelled.
        roles: of an evaluation, int64 `[N]`, see `node_roles`.
        truth: int64 `[N]`, 1, 0 or -1 where it is unknown; or None.
    """

    x: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None
    labels: Tensor
    held_out: Tensor
    roles: Tensor
    truth: Tensor | None

    @classmethod
    def of(cls, data: Any) -> "PUGraph":
        """From a checked `Data` without self-loops."""
        none = torch.zeros(len(data.x), dtype=torch.bool)
        held_out = data.held_out_mask if "held_out_mask" in data else none
        weight = data.edge_weight if "edge_weight" in data else None
        truth = data.pu_y if "pu_y" in data else None
        return cls(data.x, data.edge_index, weight, loss_labels(data), held_out, node_roles(data), truth)

    def to(self, device: torch.device) -> "PUGraph":
        """On a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value if value is None else value.to(device) for name, value in values.items()}
        return PUGraph(**moved)

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.x)

    @property
    def positive(self) -> Tensor:
        """The known positives of the training, bool `[N]`."""
        return self.labels == 1

    @property
    def unlabeled(self) -> Tensor:
        """What the loss takes for unlabelled, held-out positives too, bool `[N]`."""
        return self.labels == 0

    @property
    def hidden(self) -> Tensor:
        """The unlabelled nodes of which nothing is known, bool `[N]`; the prior is of these."""
        return self.unlabeled & ~self.held_out


class WholeGraph(Dataset[dict[str, Any]]):
    """One row: the labels of the loss, and what else is given. The graph itself lies on the device, and in no loader.

    Attributes:
        described_as: in words, for a card.
    """

    def __init__(self, graph: PUGraph, /, **values: Any) -> None:
        self._row = {"labels": graph.labels, **values}
        self.described_as = f"graph of {graph.num_nodes} nodes and {graph.edge_index.shape[1]} edges"

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in (0, -1):
            raise IndexError(f"index: found {index}, allowed is 0, the graph")
        return dict(self._row)


def only_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of the one graph, however often loaders of several processes repeat it."""
    return rows[0]


# ------------------------------------------------------------------------------------------------ preparation
def data_of(source: Any) -> Any:
    """The graph of a `GraphRows`, or the graph itself."""
    return source.data if isinstance(source, Dataset) and hasattr(source, "data") else source


def prepared(data: Any, *, held_out: float, seed: int) -> Any:
    """A checked graph without self-loops, some of whose positives are held out; the one given stays as it is.

    Args:
        data: with `positive_mask`; with a `held_out_mask` that one is kept.
        held_out: share of the known positives to hold out otherwise, one at least; 0 for none.
        seed: of the draw.

    Raises:
        ValueError: as `check_graph`; too few positives to hold any out.
    """
    check_graph(data)
    data = without_loops(data)
    if "held_out_mask" in data or not held_out:
        return data
    nodes = data.positive_mask.nonzero()[:, 0].cpu()
    number = max(1, round(held_out * len(nodes)))
    if number >= len(nodes):
        raise ValueError(
            f"gpl_held_out: found {held_out} with {len(nodes)} known positives, allowed is a share that leaves one to "
            "train on, or 0"
        )
    order = torch.randperm(len(nodes), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(len(data.x), dtype=torch.bool)
    mask[nodes[order[:number]]] = True
    mask = mask.to(data.positive_mask.device)
    data = copy.copy(data)
    data.held_out_mask, data.positive_mask = mask, data.positive_mask & ~mask
    if "unlabeled_mask" in data:
        data.unlabeled_mask = data.unlabeled_mask | mask
    return data


def is_same_graph(one: PUGraph, other: PUGraph) -> bool:
    """Whether both have the same edges between as many nodes."""
    same = one.num_nodes == other.num_nodes and one.edge_index.shape == other.edge_index.shape
    return same and torch.equal(one.edge_index.cpu(), other.edge_index.cpu())
