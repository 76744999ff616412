"""Graphs of GPL's study: digits that come with the package, and files that a user brings."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_ext.data.graphs import PUSplit, digits_graph, load_graph
from hf_ext.studies.study import Run

EMBEDDED = "digits-graph"
LABEL_SHARE, HELD_OUT = 0.5, 0.2
WIDEST = 500  # features of graphs that have more nodes than that
ARRAYS = ("x", "edge_index", "y")


def describe(place: str) -> dict[str, Any]:
    """What identifies a graph: a hash of its features, edges and classes, how many there are, and the file's own hash.

    Raises:
        ValueError: no graph, or one without classes, or with too few nodes in the largest for a split.
    """
    data = load_graph(place)
    if "y" not in data:
        raise ValueError(f"--data: found no classes (y) in {place}, allowed is a graph with {', '.join(ARRAYS)}")
    PUSplit(label_share=LABEL_SHARE, held_out=HELD_OUT)(data.clone())
    digest = hashlib.sha256()
    for name in ARRAYS:
        values = data[name].contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode() + values.numpy().tobytes())
    file = Path(place).expanduser()
    return {
        "sha256": digest.hexdigest(),
        "rows": {"nodes": len(data.x), "edges": data.edge_index.shape[1], "features": data.x.shape[1]},
        **({"file_sha256": hashlib.sha256(file.read_bytes()).hexdigest()} if file.is_file() else {}),
    }


def open_graph(run: Run) -> Any:
    """The graph of a run with the positives that its seed makes known, and features as networks see them.

    Raises:
        ValueError: something else in the place of what comes with the package.
    """
    options: Mapping[str, Any] = run.case.options
    if run.case.data == EMBEDDED:
        if run.data != EMBEDDED:
            raise ValueError(f"--data: found {run.data!r} in place of {EMBEDDED}, allowed is none: it is made")
        data = digits_graph(cross_edges=options["cross_edges"], seed=run.seed)
    else:
        data = load_graph(run.data)
    data = PUSplit(options.get("positive"), LABEL_SHARE, HELD_OUT, seed=run.seed)(data)
    data.x = commonest(data.x)
    if options.get("normalised"):
        data.x = data.x / data.x.abs().sum(dim=1, keepdim=True).clamp(min=1e-9)
    return data


def commonest(x: Tensor) -> Tensor:
    """The features that most nodes have, where there are many nodes; all of them where there are few."""
    if x.shape[1] <= WIDEST or len(x) <= 2 * WIDEST:
        return x
    counts = (x != 0).sum(dim=0)
    return x[:, torch.sort(counts, descending=True, stable=True).indices[:WIDEST].sort().values]


def true_prior(data: Any) -> float:
    """Share of positives among the unlabelled nodes that are not held out, of those whose class is known."""
    hidden = ~(data.positive_mask | data.held_out_mask) & (data.pu_y >= 0)
    return float((data.pu_y[hidden] == 1).double().mean())


def between_equals(data: Any) -> Any:
    """The same graph without the edges that join a positive and a negative: nobody has it."""
    source, target = data.edge_index
    data = data.clone()
    data.edge_index = data.edge_index[:, data.pu_y[source] == data.pu_y[target]]
    return data


def weighted(data: Any, edge_index: Tensor, edge_weight: Tensor) -> Any:
    """The same graph with these edges and their weights."""
    data = data.clone()
    data.edge_index, data.edge_weight = edge_index.cpu(), edge_weight.cpu()
    return data
