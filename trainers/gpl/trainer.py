"""Learning from positive and unlabelled nodes of a graph, with any Trainer.

GPL (Wu et al., ICML 2024, arXiv:2405.19919). Written from the abstract and public notes; neither the paper's full text
nor the authors' code was available.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_ext.data.graphs import GraphCollator, SampledRows
from hf_ext.trainers.base import MethodMixin
from hf_ext.trainers.cards import with_hyper_parameters
from hf_ext.trainers.checkpoints import read_state
from hf_ext.trainers.gpl.arguments import GPLArguments
from hf_ext.trainers.gpl.epochs import Epochs, check_state
from hf_ext.trainers.gpl.evaluation import GRAPH, CalibratedMetrics, GraphEvaluationMixin
from hf_ext.trainers.gpl.graph import PUGraph, WholeGraph, data_of, only_row, prepared
from hf_ext.trainers.gpl.losses import batch_losses, whole_losses
from hf_ext.trainers.gpl.passes import inputs_of, sampled_inputs
from hf_ext.trainers.gpl.refusals import (
    check_epochs,
    check_features,
    check_held_out,
    check_model,
    check_trainer,
    warn_of_heterophily,
)
from hf_ext.trainers.gpl.results import facts_of, graph_helps, save_edge_weights, with_calibration
from hf_ext.trainers.processes import rows_per_process


@dataclass
class GPLConfig(GPLArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of GPL."""


class _EpochCallback(TrainerCallback):
    """Has a Trainer begin its run and its epochs: also one that is resumed within an epoch comes here."""

    def __init__(self, trainer: "GPLMixin") -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin_run()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch(int(state.epoch or 0))


class GPLMixin(GraphEvaluationMixin, MethodMixin):
    """Trains a `GraphPUModel` to tell positive from negative nodes, of which some positives are known.

    After a warm-up, in which every unlabelled node counts as negative, each epoch begins with what `Epochs` does:
    edges take steps down the label propagation loss, the prior is estimated, unlabelled nodes are ranked and the
    prior's share of them selected. Its updates then minimise `gpl_objective`'s loss with weights of edges that stay
    as they are. The whole graph is one batch, and an epoch one update, in each of N processes the same; or with
    `gpl_neighbors` batches are of sampled neighbourhoods.

    Logged: `positive_loss`, `negative_loss`; of epochs since the warm-up `prior`, `lpl`, `pseudo_homophily`,
    `mean_edge_weight`, `selected_fraction`; once `gnn_auc`, `guide_auc` and `auc_error`.

    The model's configuration gets `class_prior`, `prior_interval`, `score_offset` and `threshold` whenever the model
    is saved, and when training ends; free weights of edges lie beside it, `edge_weights.safetensors`. Evaluation takes
    the graph as a whole, with these weights, and `PUMetrics` if there is no other `compute_metrics`.

    Args:
        train_dataset: a PyG `Data` with `positive_mask`, or `GraphRows` of one.
        eval_dataset: another one, or several by name; by default the same.

    Raises:
        ValueError: at construction, or before the first step: a graph, a model or settings that cannot work.
    """

    args: Any  # TrainingArguments with GPLArguments mixed in
    model: Any
    method = "gpl"
    arguments = GPLArguments
    replaces_loss = True

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        self._check_kind_of(args)
        if data_collator is not None:
            raise ValueError(
                f"data_collator: found {type(data_collator).__name__}, allowed is None: a graph makes its own batches"
            )
        #: what happens once an epoch, and has happened; None before the first run
        self.epochs: Epochs | None = None
        #: what is trained on; None without a train_dataset
        self.training_graph: PUGraph | None = None
        self.train_source = data_of(train_dataset)
        self._resumed: dict[str, Any] = {}
        if train_dataset is not None:
            data = prepared(self.train_source, held_out=args.gpl_held_out, seed=args.gpl_seed)
            self.training_graph = PUGraph.of(data)
            eval_dataset = self.train_source if eval_dataset is None else eval_dataset
            train_dataset, data_collator = self._rows(data, self.training_graph, args)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, **kwargs)
        self.loss_is_scaled_for_ga = True  # every loss here is a share of its update's
        self._measures_by_default = self.compute_metrics is None
        self.add_callback(_EpochCallback(self))

    @staticmethod
    def _rows(data: Any, graph: PUGraph, args: Any) -> tuple[Any, Callable[..., Any]]:
        if args.gpl_neighbors is None:
            return WholeGraph(graph), only_row
        rows = SampledRows(data, args.gpl_neighbors, seed=args.gpl_seed)
        return rows, GraphCollator(rows)

    # ---------------------------------------------------------------------------------------------- arguments
    def check_arguments(self) -> None:
        super().check_arguments()
        self.refuse_other_methods("its batches are graphs, whose nodes are neither rows nor apart from each other")
        check_trainer(self)
        check_model(self.model, self.args)
        if self.training_graph is not None:
            check_features(self.training_graph, self.model)
            check_held_out(self.training_graph, self.args)
            warn_of_heterophily(self.training_graph)
        self.warn_of_other_loss(GPLMixin)

    # ---------------------------------------------------------------------------------------------- a run
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the model's scorer of edges, if it has one, is left to the epochs meanwhile."""
        if self.training_graph is None:
            raise ValueError("train_dataset: found None, allowed is a graph with known positives")
        check_epochs(self.args, self._number_of_epochs())
        self._resumed = {}
        scorer = [] if self.model.edge_scorer is None else list(self.model.edge_scorer.parameters())
        for parameter in scorer:
            parameter.requires_grad_(False)
        try:
            result = super().train(*args, **kwargs)
            if self.epochs is not None:
                with_calibration(self.epochs, self.model.config)
            return result
        finally:
            for parameter in scorer:
                parameter.requires_grad_(True)

    def _number_of_epochs(self) -> int:
        args, rows = self.args, len(self.train_dataset)  # type: ignore[arg-type]
        if args.max_steps <= 0:
            return math.ceil(args.num_train_epochs)
        batch = rows_per_process(args, args.train_batch_size) * args.world_size * args.gradient_accumulation_steps
        return math.ceil(args.max_steps / (1 if args.gpl_neighbors is None else math.ceil(rows / batch)))

    def begin_run(self) -> None:
        """Called when model and optimizer are ready; a resumed run takes up its state."""
        args = self.args
        batch = rows_per_process(args, args.train_batch_size) * args.world_size * args.gradient_accumulation_steps
        assert self.training_graph is not None
        graph = self.training_graph.to(args.device)
        self.epochs = Epochs(self.model, graph, args, None if args.gpl_neighbors is None else batch)
        if self._resumed:
            self.epochs.load_state(self._resumed)

    def begin_epoch(self, epoch: int) -> None:
        """Called before an epoch's first update; what of it a resumed run has done already is not done again."""
        assert self.epochs is not None
        if isinstance(self.train_dataset, SampledRows):
            self.train_dataset.set_epoch(epoch)
        found = self.epochs.begin(epoch)
        if found:
            self.record(diagnostics=found)

    # ---------------------------------------------------------------------------------------------- checkpoints
    def checkpoint_state(self) -> dict[str, Any]:
        return super().checkpoint_state() | ({} if self.epochs is None else self.epochs.state())

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        assert self.training_graph is not None
        check_state(state, self.training_graph)
        self._resumed = state

    def _load_best_model(self) -> None:
        super()._load_best_model()
        assert self.epochs is not None
        self.epochs.load_state(read_state(str(self.state.best_model_checkpoint)))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model with prior and cut in its configuration, and free weights of edges beside it."""
        if self.epochs is not None:
            with_calibration(self.epochs, self.model.config)
            if self.args.should_save:
                folder = str(self.args.output_dir if output_dir is None else output_dir)
                os.makedirs(folder, exist_ok=True)
                save_edge_weights(self.epochs, folder)
        super().save_model(output_dir, _internal_call)

    # ---------------------------------------------------------------------------------------------- data
    def get_train_dataloader(self) -> DataLoader[Any]:
        """As Trainer's; the one row of a whole graph is no incomplete batch."""
        drops_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops_last and self.args.gpl_neighbors is not None
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = drops_last

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns: Any = [*(self._signature_columns or []), "node"]  # of rows, for the collator

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Unknown: the graph is no part of the batches that Trainer counts tokens of."""
        return 0

    # ---------------------------------------------------------------------------------------------- loss
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss in training; the model's own in the warm-up and in evaluation."""
        if GRAPH in inputs:
            made = self.evaluation_inputs(inputs[GRAPH])
            return super().compute_loss(
                model, {**made, "labels": inputs["labels"]}, return_outputs, num_items_in_batch
            )
        epochs = self.epochs
        assert epochs is not None
        if self.args.gpl_neighbors is None:
            made = inputs_of(epochs.graph, epochs.operator())
        else:
            made = sampled_inputs(epochs.model, epochs.graph, epochs.operator(), inputs)
        if epochs.warms_up:
            made["labels"] = inputs["labels"]
            loss, outputs = super().compute_loss(
                model, made, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
            losses, weight = self._losses(outputs.logits.detach(), inputs, num_items_in_batch)
        else:
            outputs = model(**made)
            losses, weight = self._losses(outputs.logits, inputs, num_items_in_batch)
            loss = losses["total"] * weight
        # logged is the mean over an update's batches, which may have more seeds and fewer
        share = weight * (1 if self.args.gpl_neighbors is None else self.current_gradient_accumulation_steps)
        self.record(terms={f"{name}_loss": share * losses[name] for name in ("positive", "negative")})
        return (loss, outputs) if return_outputs else loss

    def _losses(
        self, logits: Tensor, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> tuple[dict[str, Tensor], Tensor | float]:
        """Terms and total, and the weight of this batch in its update."""
        assert self.epochs is not None
        if self.args.gpl_neighbors is None:
            return whole_losses(self.epochs, logits), 1.0
        assert num_items_in_batch is not None  # the batch has labels
        processes = self.accelerator.num_processes
        in_all = num_items_in_batch * (1 if self.args.average_tokens_across_devices else processes)
        return batch_losses(self.epochs, logits, inputs, in_all, processes)

    # ---------------------------------------------------------------------------------------------- results
    @property
    def graph_helps(self) -> dict[str, Any]:
        """Whether the network finds held-out positives better than features alone do, with the numbers; in words."""
        return graph_helps(self.epochs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; by `PUMetrics`, if Trainer was given no other metrics."""
        if self._measures_by_default:
            self.compute_metrics = CalibratedMetrics(self._known_prior())
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _known_prior(self) -> float | None:
        prior: float | None = None if self.epochs is None else self.epochs.prior
        return self.model.config.class_prior if prior is None else prior

    def card_facts(self) -> dict[str, Any]:
        if self.card is not None and self.epochs is not None:
            for name, value in facts_of(self.epochs).items():
                self.card.add_fact(name, value)
        about = {"graph": self.graph_helps["verdict"]}
        return with_hyper_parameters(super().card_facts(), about)


class GPLTrainer(GPLMixin, Trainer):
    """`Trainer` with GPL; see `GPLMixin`. Takes `GPLConfig` as `args`."""
