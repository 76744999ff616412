"""Evaluation of whole graphs in any Trainer: one batch, one pass, in every process the same."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer

from hf_ext.functional import prior_offset
from hf_ext.metrics import PUMetrics
from hf_ext.trainers.gpl.epochs import Epochs
from hf_ext.trainers.gpl.graph import PUGraph, WholeGraph, data_of, is_same_graph, only_row, prepared
from hf_ext.trainers.gpl.passes import Operator, inputs_of, operator_of
from hf_ext.trainers.gpl.refusals import check_features

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

#: the part of an evaluation's batch that is no tensor
GRAPH = "graph"


class GraphEvaluationMixin(_Base):
    """Logits `[N]` of a graph's nodes are predictions, what they are (`node_roles`) label ids."""

    args: Any
    model: Any
    epochs: Epochs | None
    training_graph: PUGraph | None
    train_source: Any  # what the training's graph was made of
    gather_function: Any

    # ---------------------------------------------------------------------------------------------- data
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The graph as one batch; of a loader of Trainer's own each process would get a part."""
        source: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(source, str):
            source = self.eval_dataset[source]  # type: ignore[index]
        if source is None:
            raise ValueError("eval_dataset: found None, allowed is a graph with known positives")
        return _loader(self.graph_of(source))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """As for an evaluation."""
        return _loader(self.graph_of(test_dataset))

    def graph_of(self, source: Any) -> PUGraph:
        """A checked graph; the training's, with its held-out positives, where that is given again.

        Raises:
            ValueError: a graph that cannot be evaluated by this model.
        """
        own = self.training_graph
        if own is not None and data_of(source) is self.train_source:
            return own
        graph = PUGraph.of(prepared(data_of(source), held_out=0.0, seed=0))
        check_features(graph, self.model)
        if own is None or not is_same_graph(graph, own):
            return graph
        known, own_known = graph.positive | graph.held_out, own.positive | own.held_out
        return own if torch.equal(known.cpu(), own_known.cpu()) and not bool(graph.held_out.any()) else graph

    # ---------------------------------------------------------------------------------------------- weights
    def evaluation_inputs(self, graph: PUGraph) -> dict[str, Any]:
        """The model's inputs of a graph, with the weights that its edges have."""
        if self.epochs is not None and graph is self.training_graph:
            return inputs_of(self.epochs.graph, self.epochs.operator())
        graph = graph.to(self.args.device)
        return inputs_of(graph, self._operator(graph))

    def _operator(self, graph: PUGraph) -> Operator:
        """The training's for its own edges; the scorer's for others, or the weights given."""
        if self.epochs is not None and is_same_graph(graph, self.epochs.graph):
            return self.epochs.operator()
        weights = graph.edge_weight
        if self.model.edge_scorer is not None:
            with torch.no_grad():
                weights = self.model.learned_weights(graph.x, graph.edge_index, weights)
        return operator_of(self.model, graph, weights)

    # ---------------------------------------------------------------------------------------------- loop
    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        gather, self.gather_function = self.gather_function, _as_it_is
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.gather_function = gather

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict; label ids say what a node is, which the loss is not told."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if labels is not None and GRAPH in inputs:
            labels = inputs[GRAPH].roles.to(labels.device)
        return loss, logits, labels


def _loader(graph: PUGraph) -> DataLoader[Any]:
    return DataLoader(WholeGraph(graph, **{GRAPH: graph}), batch_size=1, collate_fn=only_row)


def _as_it_is(values: Tensor) -> Tensor:
    """In place of gathering: every process has all nodes."""
    return values


class CalibratedMetrics:
    """`PUMetrics` of logits that are shifted so that their mean probability over the unlabelled is the prior.

    Args:
        prior: of the run so far; None where there is none, and then nothing is shifted.
    """

    def __init__(self, prior: float | None) -> None:
        self.prior = prior

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, roles = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        hidden = torch.from_numpy(logits[np.isin(roles, (1, 0, -1))])
        offset = 0.0 if self.prior is None else float(prior_offset(hidden, prior=self.prior))
        return PUMetrics(self.prior, offset).of(logits, roles)
