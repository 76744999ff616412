"""What the model's inputs may be, and what is said of others. Values are looked at on the CPU alone."""

import math
from typing import Any

import torch
from torch import Tensor


def check_features(x: Any, num_features: int) -> None:
    """Refuse what is not floats `[N, F]`."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 2 or x.shape[1] != num_features:
        raise ValueError(f"x: found {_kind(x)}, allowed are floats [N, {num_features}], features of N nodes")


def check_edges(edge_index: Any, num_nodes: int) -> Tensor:
    """The edges, if they are int64 `[2, M]` of nodes that there are."""
    allowed = "allowed are edges from the first row's nodes to the second's, int64 [2, M]"
    if not isinstance(edge_index, Tensor) or edge_index.dtype != torch.int64:
        raise ValueError(f"edge_index: found {_kind(edge_index)}, {allowed}")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index: found {_kind(edge_index)}, {allowed}")
    if looks_at(edge_index):
        least, most = (int(value) for value in edge_index.aminmax())
        if least < 0 or most >= num_nodes:
            found = least if least < 0 else most
            raise ValueError(f"edge_index: found {found}, allowed are nodes 0 to {num_nodes - 1}")
    return edge_index


def check_weights(edge_weight: Any, num_edges: int) -> Tensor:
    """The weights, if they are floats `[M]`, finite and not negative."""
    if not isinstance(edge_weight, Tensor) or not edge_weight.is_floating_point() or edge_weight.shape != (num_edges,):
        raise ValueError(f"edge_weight: found {_kind(edge_weight)}, allowed is a float for every edge, [{num_edges}]")
    if looks_at(edge_weight):
        for value in (float(value) for value in edge_weight.detach().aminmax()):
            if not 0 <= value < math.inf:
                raise ValueError(f"edge_weight: found {value}, allowed are finite numbers >= 0")
    return edge_weight


def check_labels(labels: Any, num_nodes: int) -> None:
    """Refuse what is not 1, 0 or -100, integers or truth values `[N]`."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != (num_nodes,):
        raise ValueError(f"labels: found {_kind(labels)}, allowed is an integer for every node, [{num_nodes}]")
    if looks_at(labels):
        others = labels[(labels != 0) & (labels != 1) & (labels != -100)]
        if len(others):
            raise ValueError(
                f"labels: found {int(others[0])}, allowed are 1 (positive), 0 (negative or unlabelled) and -100 (none)"
            )


def looks_at(values: Tensor) -> bool:
    """Whether values are there to be looked at without waiting for a device."""
    return not torch.compiler.is_compiling() and values.device.type == "cpu" and values.numel() > 0


def _kind(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
