"""Layers that pass messages, those of PyTorch Geometric, and what each of them sums messages with."""

from itertools import pairwise
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch_geometric.nn import FAConv, GATConv, GCN2Conv, GCNConv, GraphConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.typing import OptTensor
from torch_geometric.utils import scatter, softmax

from .configuration_graph import GraphPUConfig


class WeightedGATConv(GATConv):
    """Attention times the weights of edges, normalised again; without any weight into a node it gets no message."""

    def edge_update(
        self,
        alpha_j: Tensor,
        alpha_i: OptTensor,
        edge_attr: OptTensor,
        index: Tensor,
        ptr: OptTensor,
        dim_size: Optional[int],  # noqa: UP045 (PyTorch Geometric reads it, and knows no other form)
    ) -> Tensor:
        """Attention `[M, heads]` of edges of weight `edge_attr`, `[M]`."""
        attention = super().edge_update(alpha_j, alpha_i, None, index, ptr, dim_size)
        weighted = attention * edge_attr[:, None]
        total = scatter(weighted, index, 0, dim_size)
        return weighted / total.clamp(min=torch.finfo(total.dtype).tiny)[index]


class FeaturesAlone(nn.Linear):
    """A layer that sees no edges."""

    def forward(self, input: Tensor, *_: Any) -> Tensor:
        """`[N, D]` to `[N, E]`."""
        return super().forward(input)


class Convolutions(nn.Module):
    """Layers, and what they sum messages with."""

    def __init__(self, config: GraphPUConfig) -> None:
        super().__init__()
        self.conv = config.conv
        self.dropout = nn.Dropout(config.dropout)

    def operator(self, edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
        """Edges and weights that layers sum messages with; see `GraphPUModel.operator`."""
        if self.conv == "mlp":
            return edge_index, edge_weight
        if self.conv == "sage":
            total = scatter(edge_weight, edge_index[1], 0, num_nodes)
            return edge_index, edge_weight / total.where(total > 0, 1)[edge_index[1]]
        edge_index, edge_weight = _with_loops(edge_index, edge_weight, num_nodes)
        if self.conv == "gat":
            return edge_index, edge_weight
        return gcn_norm(edge_index, edge_weight, num_nodes, add_self_loops=False, dtype=edge_weight.dtype)

    def softmax(self, scores: Tensor, edge_index: Tensor, num_nodes: int) -> Tensor:
        """Weights `[M]` that sum to 1 over all edges into a node."""
        return softmax(scores, edge_index[1], num_nodes=num_nodes)


class StackedConvolutions(Convolutions):
    """Layers on top of each other, the last of one column."""

    def __init__(self, config: GraphPUConfig) -> None:
        super().__init__(config)
        widths = [config.num_features, *[config.hidden_size] * (config.num_layers - 1), 1]
        self.layers = nn.ModuleList(_layer(config, before, after) for before, after in pairwise(widths))
        self.activation = nn.ELU() if config.conv == "gat" else nn.ReLU()

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """Features `[N, F]` to logits `[N, 1]`."""
        for number, layer in enumerate(self.layers):
            states = self.activation(x) if number else x
            x = layer(self.dropout(states), edge_index, edge_weight)
        return x


class ResidualConvolutions(Convolutions):
    """Layers that see a node's first state again, between two linear ones."""

    def __init__(self, config: GraphPUConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.input = nn.Linear(config.num_features, width)
        self.layers = nn.ModuleList(_residual_layer(config, number) for number in range(1, config.num_layers + 1))
        self.output = nn.Linear(width, 1)
        self.activation = nn.ReLU() if config.conv == "gcnii" else nn.Identity()

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """Features `[N, F]` to logits `[N, 1]`."""
        states = first = torch.relu(self.input(self.dropout(x)))
        for layer in self.layers:
            states = self.activation(layer(self.dropout(states), first, edge_index, edge_weight))
        logits: Tensor = self.output(self.dropout(states))
        return logits


def convolutions(config: GraphPUConfig) -> Convolutions:
    """The layers of a model."""
    return (ResidualConvolutions if config.conv in ("gcnii", "fagcn") else StackedConvolutions)(config)


def _layer(config: GraphPUConfig, before: int, after: int) -> nn.Module:
    if config.conv == "gat":
        last = after == 1
        size = 1 if last else after // config.heads
        return WeightedGATConv(before, size, heads=config.heads, concat=not last, add_self_loops=False)
    if config.conv == "sage":  # on an operator whose rows sum to 1, so that sums are means
        return GraphConv(before, after, aggr="add")
    if config.conv == "gcn":
        return GCNConv(before, after, normalize=False)
    return FeaturesAlone(before, after)


def _residual_layer(config: GraphPUConfig, number: int) -> nn.Module:
    if config.conv == "gcnii":
        alpha, theta = float(config.gcnii_alpha), float(config.gcnii_theta)
        return GCN2Conv(config.hidden_size, alpha, theta, layer=number, normalize=False)
    return FAConv(config.hidden_size, eps=float(config.fagcn_eps), normalize=False)


def _with_loops(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """A loop of weight 1 for every node, behind all edges; loops that are there already weigh nothing."""
    nodes = torch.arange(num_nodes, device=edge_index.device)
    kept = edge_weight.where(edge_index[0] != edge_index[1], 0)
    return torch.cat([edge_index, nodes.expand(2, -1)], dim=1), torch.cat([kept, kept.new_ones(num_nodes)])
