"""What a graph has to be before anything is learnt from it, and which part each of its nodes has."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from hf_ext.data.graphs.geometric import Data, HeteroData

#: parts of nodes in an evaluation, as `node_roles` gives them; 0 and 1 are the true classes of unlabelled nodes
UNKNOWN, HELD_OUT, NOT_EVALUATED = -1, 2, -100
#: in `loss_labels`
IGNORED = -100
_MASKS = ("positive_mask", "held_out_mask", "unlabeled_mask")


def check_graph(data: Any) -> None:
    """Check a graph with known positives; nothing is changed.

    Args:
        data: a PyG `Data` with `positive_mask` and what `check_structure` looks at. `held_out_mask` and
            `unlabeled_mask`, bool `[N]`, and `pu_y`, int64 `[N]`, the true class (1, 0, or -1 where it is unknown),
            are optional.

    Raises:
        ValueError: as `check_structure`; masks of another dtype or length; no positives; no unlabelled nodes (other
            than those held out); positives that are held out or unlabelled as well; `pu_y` with other values, or 0
            for a known positive.
    """
    check_structure(data)
    for name in _MASKS:
        if _value(data, name) is not None:
            _check_mask(name, data[name], data.x.size(0))
    if _value(data, "positive_mask") is None:
        raise ValueError("positive_mask: found None, allowed is bool [N], True for known positives (PUSplit sets it)")
    positive, held_out, unlabeled = data.positive_mask, _held_out(data), unlabeled_nodes(data)
    if not positive.any():
        raise ValueError("positive_mask: found no positive node, allowed is at least one")
    for name in _MASKS[1:]:
        if _value(data, name) is not None and (both := int((positive & data[name]).sum())):
            raise ValueError(f"{name}: found {both} nodes that are in positive_mask, too, allowed are others")
    if not (unlabeled & ~held_out).any():
        raise ValueError(
            "positive_mask: found no unlabelled node besides, allowed is at least one that is neither held out nor "
            "left out by unlabeled_mask"
        )
    _check_truth(data, positive | held_out)


def check_structure(data: Any) -> None:
    """Check nodes and edges of a graph, whatever is known of its positives; nothing is changed.

    Args:
        data: a PyG `Data` with `x`, floating `[N, F]`, and `edge_index`, int64 `[2, M]` from source to target.
            Optional are `edge_weight`, floating `[M]`, at least 0; `y`, integers `[N]`, classes from 0 or -1 where
            unknown; and `node_ids`, `N` of the user's own ids.

    Raises:
        ValueError: a `HeteroData` or something else; values that are missing, of another shape, dtype or length; NaN
            or infinite features or weights; nodes out of range in `edge_index`; negative weights.
    """
    if isinstance(data, HeteroData):
        raise ValueError(
            "data: found HeteroData, allowed is a Data, of one kind of nodes and edges (HeteroData.to_homogeneous())"
        )
    if not isinstance(data, Data):
        raise ValueError(f"data: found {type(data).__name__}, allowed is a Data of torch_geometric")
    number = _check_features(_value(data, "x"))
    if data.num_nodes != number:
        raise ValueError(f"num_nodes: found {data.num_nodes}, allowed is {number}, the rows of x")
    edges = _check_edges(_value(data, "edge_index"), number)
    if (weight := _value(data, "edge_weight")) is not None:
        _check_weights(weight, edges)
    if (classes := _value(data, "y")) is not None:
        _check_shape("y", classes, (number,), "integers [N], classes from 0, or -1 where unknown", _is_integer)
        if (classes < -1).any():
            raise ValueError(f"y: found {int(classes.min())}, allowed are classes from 0, or -1 where unknown")
    if (ids := _value(data, "node_ids")) is not None and len(ids) != number:
        raise ValueError(f"node_ids: found {len(ids)} of them, allowed is one for each of {number} nodes")


def without_loops(data: Data) -> Data:
    """The graph without edges from a node to itself, which every convolution adds for itself.

    Tensors whose names begin with `edge_`, such as `edge_weight`, lose their entries, too. A graph without self-loops
    comes back as it is, another one as a new `Data`, and a warning says how many there were.
    """
    loops = data.edge_index[0] == data.edge_index[1]
    if not loops.any():
        return data
    warnings.warn(f"edge_index: {int(loops.sum())} self-loops are left out: convolutions add their own", stacklevel=2)
    kept = copy.copy(data)  # Data.edge_subgraph takes every list of as many values as there are edges for theirs
    for name, values in data.to_dict().items():
        if name.startswith("edge_") and isinstance(values, Tensor):
            kept[name] = values[..., ~loops] if name == "edge_index" else values[~loops]
    return kept


def unlabeled_nodes(data: Data) -> Tensor:
    """The nodes that count as unlabelled, bool `[N]`: those held out, and `unlabeled_mask`, or all but positives."""
    given = _value(data, "unlabeled_mask")
    return (~data.positive_mask if given is None else given) | _held_out(data)


def node_roles(data: Data) -> Tensor:
    """What each node is in an evaluation, int64 `[N]`.

    1 and 0 are unlabelled nodes by their true class (`pu_y`), -1 those whose class is unknown, 2 positives that were
    held out, whatever `pu_y` says, and -100 all others: positives of the training, and nodes that are in neither set.
    """
    truth = _value(data, "pu_y")
    known = torch.full_like(data.positive_mask, UNKNOWN, dtype=torch.int64) if truth is None else truth.long()
    roles = torch.where(unlabeled_nodes(data), known, NOT_EVALUATED)
    return roles.masked_fill(_held_out(data), HELD_OUT)


def loss_labels(data: Data) -> Tensor:
    """The labels that a loss sees, int64 `[N]`: 1 known positive, 0 unlabelled (held out ones too), -100 other."""
    labels = torch.where(unlabeled_nodes(data), 0, IGNORED)
    return labels.masked_fill(data.positive_mask, 1)


def _value(data: Data, name: str) -> Any:
    return data.get(name)


def _held_out(data: Data) -> Tensor:
    given = _value(data, "held_out_mask")
    return torch.zeros_like(data.positive_mask) if given is None else given


def _is_integer(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _found(values: Any) -> str:
    return f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__


def _check_shape(name: str, values: Any, shape: tuple[int | None, ...], allowed: str, is_kind: Any) -> None:
    """Refuse what is no dense tensor of this shape (None: any size) and kind."""
    fits = isinstance(values, Tensor) and values.layout == torch.strided and values.ndim == len(shape)
    if not (fits and all(want in (None, size) for want, size in zip(shape, values.shape, strict=True))):
        sizes = "".join(f", {letter} = {size}" for letter, size in zip("NF", shape, strict=False) if size)
        raise ValueError(f"{name}: found {_found(values)}, allowed is {allowed}{sizes}")
    if not is_kind(values):
        raise ValueError(f"{name}: found {_found(values)}, allowed is {allowed}")


def _check_features(x: Any) -> int:
    _check_shape("x", x, (None, None), "floating [N, F]", Tensor.is_floating_point)
    if not x.numel():
        raise ValueError(f"x: found shape {tuple(x.shape)}, allowed is [N, F] with at least one node and one feature")
    finite = torch.isfinite(x)
    if not finite.all():
        node, feature = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"x: found {x[node, feature].item()} at node {node}, feature {feature} ({int((~finite).sum())} such), "
            "allowed are finite numbers"
        )
    return len(x)


def _check_edges(edge_index: Any, number: int) -> int:
    _check_shape("edge_index", edge_index, (2, None), "int64 [2, M], from source to target", _is_int64)
    wrong = (edge_index < 0) | (edge_index >= number)
    if wrong.any():
        side, edge = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"edge_index: found node {edge_index[side, edge].item()} at edge {edge} ({int(wrong.any(0).sum())} such "
            f"edges), allowed are 0 to {number - 1}"
        )
    return edge_index.size(1)


def _is_int64(values: Tensor) -> bool:
    return values.dtype == torch.int64


def _check_weights(weight: Any, edges: int) -> None:
    if not isinstance(weight, Tensor) or tuple(weight.shape) != (edges,) or not weight.is_floating_point():
        raise ValueError(f"edge_weight: found {_found(weight)}, allowed is floating [M], M = {edges}")
    wrong = ~(torch.isfinite(weight) & (weight >= 0))
    if wrong.any():
        edge = int(wrong.nonzero()[0])
        raise ValueError(
            f"edge_weight: found {weight[edge].item()} at edge {edge} ({int(wrong.sum())} such), allowed are finite "
            "numbers >= 0"
        )


def _check_mask(name: str, mask: Any, number: int) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != (number,):
        raise ValueError(f"{name}: found {_found(mask)}, allowed is bool [N], N = {number}")


def _check_truth(data: Data, known: Tensor) -> None:
    truth = _value(data, "pu_y")
    if truth is None:
        return
    _check_shape("pu_y", truth, tuple(known.shape), "integers [N]: 1, 0, or -1 where unknown", _is_integer)
    wrong = (truth < -1) | (truth > 1)
    if wrong.any():
        raise ValueError(f"pu_y: found {truth[wrong][0].item()}, allowed are 1, 0, or -1 where unknown")
    if contradicted := int((known & (truth == 0)).sum()):
        raise ValueError(f"pu_y: found 0 for {contradicted} known positives, allowed is 1, or -1 where unknown")
