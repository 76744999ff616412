"""Graph neural networks that give every node one logit: how positive it is."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .checks_graph import check_edges, check_features, check_labels, check_weights
from .configuration_graph import GraphPUConfig
from .edges_graph import START, EdgeReadout, EdgeScorer
from .portable import carrying_code
from .portable_loading import LoadedWhole
from .predicting_graph import PredictingMixin

IGNORED = -100


@dataclass
class GraphPUOutput(ModelOutput):
    """Output of `GraphPUModel`.

    Args:
        loss: scalar, with labels.
        logits: of N nodes, `[N]`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class GraphPUModel(PredictingMixin, LoadedWhole):
    """Nodes of a graph to logits.

    Raises:
        ImportError: PyTorch Geometric is not installed.
    """

    config: GraphPUConfig
    config_class = GraphPUConfig
    main_input_name = "x"
    accepts_loss_kwargs = True

    def __init__(self, config: GraphPUConfig) -> None:
        super().__init__(config)
        self.convolutions = _convolutions(config)
        self.edge_scorer = EdgeScorer(config) if config.edge_scorer else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, EdgeReadout):
            init.zeros_(module.weight)
            init.constant_(module.bias, START)
            return
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                init.zeros_(parameter)
            else:
                bound = math.sqrt(6 / sum(parameter.shape[-2:]))
                init.uniform_(parameter, -bound, bound)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save; with the files that define the model, so that it loads with `trust_remote_code=True` anywhere."""
        with carrying_code(self, {"AutoModel": GraphPUModel}):
            super().save_pretrained(save_directory, *args, **kwargs)

    # ---------------------------------------------------------------------------------------------- computing
    def forward(
        self,
        x: Tensor,
        edge_index: Tensor | None = None,
        edge_weight: Tensor | None = None,
        labels: Tensor | None = None,
        is_operator: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
    ) -> GraphPUOutput | tuple[Any, ...]:
        """Logits of all nodes, and with labels a loss, binary cross-entropy.

        Args:
            x: features, floats `[N, F]`.
            edge_index: edges, int64 `[2, M]`; messages go from the first row's nodes to the second's, and edges that
                are there twice count twice. Only `"mlp"` takes none.
            edge_weight: how much of a message arrives, floats `[M]`, >= 0; 1 by default. Differentiable.
            labels: `[N]`, 1 for positive, 0 for negative or unlabelled, -100 for no part in the loss.
            is_operator: whether edges and weights, then both needed, are those that `operator` gave, or some of them.
            num_items_in_batch: what the sum of losses is divided by; by default the number of labels.
            return_dict: False gives a tuple.

        Raises:
            ValueError: other shapes or types; on the CPU, where values are looked at, nodes that there are not,
                weights that are negative or not finite, and other labels.
        """
        check_features(x, self.config.num_features)
        if labels is not None:
            check_labels(labels, x.shape[0])
        if edge_index is None and self.config.conv == "mlp":
            edge_index = torch.zeros(2, 0, dtype=torch.int64, device=x.device)
        if is_operator:
            edges = check_edges(edge_index, x.shape[0])
            weights = check_weights(edge_weight, edges.shape[1])
        else:
            edges, weights = self.operator(edge_index, edge_weight, x.shape[0])
        logits: Tensor = self.convolutions(x.to(self.dtype), edges, weights.to(self.dtype))[:, 0]
        loss = None if labels is None else _loss(logits, labels, num_items_in_batch)
        outputs = GraphPUOutput(loss=loss, logits=logits)
        return outputs.to_tuple() if return_dict is False else outputs

    def operator(self, edge_index: Any, edge_weight: Tensor | None, num_nodes: int) -> tuple[Tensor, Tensor]:
        """What a layer sums messages with, from edges and their weights.

        - `"gcn"`, `"gcnii"`, `"fagcn"`: a loop of weight 1 for every node, behind all edges, and weights divided by
          the square roots of both ends' sums of weights; loops that were there weigh nothing.
        - `"gat"`: these loops, which attention is multiplied with.
        - `"sage"`: weights divided by their sum over all edges into a node, 0 where that is 0.
        - `"mlp"`: edges as they are.

        Args:
            edge_index: int64 `[2, M]`.
            edge_weight: floats `[M]`, >= 0; None for 1.
            num_nodes: N.

        Returns:
            Edges `[2, M]`, or `[2, M + N]` with loops, of which the first M are those given, in their order; and
            weights of them, at least float32, differentiable.

        Raises:
            ValueError: see `forward`.
        """
        check_edges(edge_index, num_nodes)
        if edge_weight is not None:
            check_weights(edge_weight, edge_index.shape[1])
        dtype = self.dtype if edge_weight is None else edge_weight.dtype
        dtype = torch.promote_types(dtype, torch.float32)
        if edge_weight is None:
            edge_weight = torch.ones(edge_index.shape[1], dtype=dtype, device=edge_index.device)
        operator: tuple[Tensor, Tensor] = self.convolutions.operator(edge_index, edge_weight.to(dtype), num_nodes)
        return operator

    @property
    def sums_edges(self) -> bool:
        """Whether messages are summed with the operator's weights, so that those of a sample of edges can be scaled.

        Attention is normalised over the edges that are there, whatever their number.
        """
        return self.config.conv != "gat"

    # ---------------------------------------------------------------------------------------------- edges
    def edge_scores(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Scores of edges, `[M]`, the same in both directions, 2 before training.

        Args:
            x: features, floats `[N, F]`.
            edge_index: int64 `[2, M]`.

        Raises:
            ValueError: a model without a scorer, or see `forward`.
        """
        if self.edge_scorer is None:
            raise ValueError("edge_scorer: found False, allowed for scores of edges is True")
        check_features(x, self.config.num_features)
        check_edges(edge_index, x.shape[0])
        scores: Tensor = self.edge_scorer(x.to(self.dtype), edge_index)
        return scores

    def learned_weights(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Weights of edges by the scorer, as `edge_kind` makes them of scores, times those given; floats `[M]`.

        Raises:
            ValueError: see `edge_scores`.
        """
        scores = self.edge_scores(x, edge_index)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.config.edge_kind == "softmax":
            weights: Tensor = self.convolutions.softmax(scores, edge_index, x.shape[0])
        else:
            weights = scores.sigmoid()
        if edge_weight is None:
            return weights
        check_weights(edge_weight, edge_index.shape[1])
        return weights * edge_weight


def _loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Binary cross-entropy of the nodes that have a label; 0 if none has."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    used = labels != IGNORED
    losses = F.binary_cross_entropy_with_logits(logits, (labels == 1).to(logits.dtype), reduction="none")
    count = used.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return losses.where(used, 0).sum() / count


def _convolutions(config: GraphPUConfig) -> Any:
    """The layers, of PyTorch Geometric, which is imported for a model and not with this file."""
    try:
        from .convolutions_graph import convolutions
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch_geometric":
            raise
        raise ImportError(
            "torch_geometric is not installed, which models of graphs need: pip install 'torch-geometric>=2.8'"
        ) from error
    return convolutions(config)


__all__ = ["GraphPUModel", "GraphPUOutput"]
