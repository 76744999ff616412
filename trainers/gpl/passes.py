"""Forward passes over the graph: what the layers sum messages with, and the scores of all nodes."""

from typing import Any

import torch
from torch import Tensor

from hf_ext.trainers.gpl.graph import PUGraph
from hf_ext.trainers.passes import evaluation_mode

#: edges and weights as `GraphPUModel.operator` gives them
Operator = tuple[Tensor, Tensor]


@torch.no_grad()
def operator_of(model: Any, graph: PUGraph, weights: Tensor | None) -> Operator:
    """What the model's layers sum messages with; computed once, for all layers of all passes of an epoch."""
    operator: Operator = model.operator(graph.edge_index, weights, graph.num_nodes)
    return operator


def inputs_of(graph: PUGraph, operator: Operator) -> dict[str, Any]:
    """The model's inputs for the whole graph, without labels."""
    return {"x": graph.x, "edge_index": operator[0], "edge_weight": operator[1], "is_operator": True}


def sampled_inputs(model: Any, graph: PUGraph, operator: Operator, batch: dict[str, Any]) -> dict[str, Any]:
    """The model's inputs for sampled neighbourhoods: the operator's weights of what was drawn.

    The degrees in them are the whole graph's. An edge stands for as many as were left out (`edge_scale`), where
    messages are summed; loops that the operator has are those of the batch's nodes.

    Args:
        batch: of `GraphCollator`: `x` `[n, F]`, `node_ids` `[n]`, `edge_index` `[2, m]` (places in them), `edge_ids`
            and `edge_scale` `[m]`.
    """
    weights, edges = operator[1], batch["edge_index"]
    drawn = weights[batch["edge_ids"]]
    if model.sums_edges:
        drawn = drawn * batch["edge_scale"].to(drawn.dtype)
    number = graph.edge_index.shape[1]
    if len(weights) > number:
        nodes = batch["node_ids"]
        loops = torch.arange(len(nodes), device=nodes.device).expand(2, -1)
        edges, drawn = torch.cat([edges, loops], dim=1), torch.cat([drawn, weights[number + nodes]])
    return {"x": batch["x"], "edge_index": edges, "edge_weight": drawn, "is_operator": True}


@torch.no_grad()
def scores_of(model: Any, graph: PUGraph, operator: Operator) -> Tensor:
    """Logits of all nodes without dropout, `[N]`, at least float32."""
    with evaluation_mode(model):
        logits: Tensor = model(**inputs_of(graph, operator)).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
