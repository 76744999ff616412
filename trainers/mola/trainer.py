"""Training of MoLA adapters with any Trainer: task ids, the TwD loss, per-task metrics, the routing table.

MoLA, mixture of low-rank adapters for heterogeneous data (Zhou et al., ICML 2024, arXiv:2406.09679); not the MoLA of
Gao et al. (LoRA experts allocated to the layers of an LLM).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext.adapters.mola import MoLAConfig, find_routing
from hf_ext.adapters.mola.routing import RoutingModule, TaskSetting
from hf_ext.data.columns import MOST_GROUPS, group_label, holds_text, ids_of_rows, text_values
from hf_ext.functional import combine_task_losses, twd_loss
from hf_ext.trainers.arguments import refuse_packing
from hf_ext.trainers.base import MethodMixin
from hf_ext.trainers.cards import with_hyper_parameters
from hf_ext.trainers.groups import prefix_of
from hf_ext.trainers.losses import logits_of, sample_losses
from hf_ext.trainers.mola.arguments import MoLAArguments
from hf_ext.trainers.processes import all_rows, first_row


@dataclass
class MoLATrainingConfig(MoLAArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of MoLA."""


class MoLAMixin(MethodMixin):
    """Trains a model that carries a MoLA adapter.

    The task column of the data set reaches the adapter as `mola_task_ids`. With `routing="router"` training adds
    `twd_weight * L_TwD` (over the pairs of all processes' micro-batches) and logs it as `twd_loss`; under gradient
    accumulation it is the mean of the micro-batches' losses, which is not the loss of the large batch's pairs.
    Evaluation uses the plain loss; it reports `compute_metrics` for every task as `eval_task_<name>_<metric>` and,
    for a router, the mean routing weights as `eval_routing_task_<name>_expert_<e>` and in `routing_table`.

    Raises:
        ValueError: at construction, for a model without MoLA adapter, a missing task column, ids out of range, packed
            sequences, a reduction that the loss in use does not allow, or a mixin with a loss of its own in front.
    """

    args: Any  # TrainingArguments with MoLAArguments mixed in
    model: Any
    method = "mola"
    arguments = MoLAArguments
    _routing_of: tuple[Any, RoutingModule | None] = (None, None)
    _ids_are_set_aside = False  # rather than among the model's inputs

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: mean routing weights of the last evaluation, `[tasks, experts]`; row t is NaN if task t did not occur
        self.routing_table: np.ndarray | None = None
        self._routing_sums: list[tuple[Tensor, Tensor]] = []
        self._task_counts: Tensor | None = None
        if self.args.mola_task_reduction == "sum":
            self.loss_is_scaled_for_ga = True

    # ---------------------------------------------------------------------------------------------- arguments
    @property
    def own_columns(self) -> tuple[str, ...]:
        return (*super().own_columns, self.args.mola_task_column)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return (*super().text_columns, self.args.mola_task_column)

    @property
    def column_bounds(self) -> dict[str, int]:
        *_, config = self._adapter
        return super().column_bounds | {self.args.mola_task_column: self._id_bound(config)}

    def _id_bound(self, config: MoLAConfig) -> int:
        if config.needs_task_ids:
            return config.task_id_bound
        return self._num_tasks if self.args.mola_task_reduction == "sum" else MOST_GROUPS

    @property
    def groups(self) -> dict[str, str]:
        return super().groups | {"task": self.args.mola_task_column}

    @property
    def _routing(self) -> RoutingModule | None:
        if self._routing_of[0] is not self.model:  # model_init makes new ones; a search at every step would be waste
            self._routing_of = (self.model, find_routing(self.model))
        return self._routing_of[1]

    @property
    def _adapter(self) -> tuple[RoutingModule, str, MoLAConfig]:
        routing = self._routing
        names = [name for name in routing.active_adapters if name in routing.configs] if routing else []
        if routing is None or len(names) != 1:
            raise ValueError(
                f"model: found a {type(self.model).__name__} with {len(names)} active MoLA adapters, allowed is one "
                "(peft.get_peft_model(model, MoLAConfig(...)))"
            )
        return routing, names[0], routing.configs[names[0]]

    def check_arguments(self) -> None:
        super().check_arguments()
        *_, config = self._adapter
        if self.args.n_gpu > 1 and config.routing == "router":  # each would be routed in a thread and model of its own
            raise ValueError(
                "routing: found 'router' with several GPUs in one process, allowed is one per process (accelerate)"
            )
        refuse_packing(self.args, "a sequence that mixes samples has no one task")
        own_loss = self.label_smoother is not None or self.compute_loss_func is not None or self.replaces_loss
        if self.args.mola_task_reduction == "sum" and own_loss:
            raise ValueError(
                "mola_task_reduction: found 'sum' with label_smoothing_factor, compute_loss_func or a method with a "
                "loss of its own, allowed is 'sample' with those"
            )
        self._check_order()
        self._check_task_column("train_dataset", self.train_dataset, config, self._training_needs_ids(config))
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        for name, dataset in evaluated.items():
            self._check_task_column(f"eval_dataset {name}".strip(), dataset, config, config.needs_task_ids)

    def _check_order(self) -> None:
        kinds = type(self).__mro__
        for kind in kinds[: kinds.index(MoLAMixin)]:
            if vars(kind).get("replaces_loss"):
                raise ValueError(
                    f"{type(self).__name__}: found {kind.__name__} in front of MoLAMixin, allowed is MoLAMixin in "
                    f"front of it, which adds its term to the loss that {kind.__name__} makes"
                )

    def _training_needs_ids(self, config: MoLAConfig) -> bool:
        return config.needs_task_ids or config.uses_twd or self.args.mola_task_reduction == "sum"

    def _check_task_column(self, argument: str, dataset: Any, config: MoLAConfig, needed: bool) -> None:
        columns = getattr(dataset, "column_names", None)
        column = self.args.mola_task_column
        if not isinstance(columns, list):
            return  # nothing to look at before the first batch
        if column not in columns:
            if needed:
                raise ValueError(
                    f"mola_task_column: found no column {column!r} in {argument}, allowed are integer columns among "
                    f"{sorted(columns)}"
                )
            return
        if not hasattr(dataset, "__len__"):
            if holds_text(dataset, column):
                raise ValueError(f"{column}: found names in {argument}, allowed are integers, one per sample")
            return
        if not len(dataset):  # data to train on are refused for that
            return
        if holds_text(dataset, column):
            self._check_task_names(argument, dataset, config)
            return
        hint = f" (num_experts={config.num_experts}, num_tasks={config.num_tasks})"
        ids_of_rows(dataset, column, bound=self._id_bound(config), argument=argument, hint=hint)

    def _check_task_names(self, argument: str, dataset: Any, config: MoLAConfig) -> None:
        column, known = self.args.mola_task_column, self.column_names(self.args.mola_task_column)
        names, bound = text_values(dataset, column), self._id_bound(config)
        if known is not None and len(known) > bound:
            raise ValueError(
                f"{column}: found {len(known)} tasks ({', '.join(known[:10])}) in train_dataset, allowed are {bound} "
                f"(num_experts={config.num_experts}, num_tasks={config.num_tasks})"
            )
        others = [name for name in names if name not in (known or ())]
        if others and (config.needs_task_ids or known is None):
            raise ValueError(
                f"{column}: found {', '.join(others[:10])} in {argument}, allowed are "
                f"{', '.join(known) if known else 'ids'}, as in train_dataset"
            )

    # ---------------------------------------------------------------------------------------------- training
    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if self._ids_are_set_aside:
            return inputs
        column = self.args.mola_task_column
        if column not in self.batch_columns:
            *_, config = self._adapter
            if self.model.training and self._training_needs_ids(config):
                raise ValueError(
                    f"mola_task_column: found no {column!r} in a batch, allowed are batches with task ids"
                )
            return inputs
        return {**inputs, "mola_task_ids": self.batch_columns[column]}

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.mola_task_reduction == "sum" and samples:
            ids = torch.cat([batch[self.args.mola_task_column] for batch in samples]).to(device)
            ones = torch.ones_like(ids, dtype=torch.float32)
            counts = torch.zeros(self._num_tasks, device=device).index_add(0, ids, ones)
            self._task_counts = self.accelerator.reduce(counts, reduction="sum")
        return samples, num_items

    @property
    def _num_tasks(self) -> int:
        *_, config = self._adapter
        return config.num_tasks or config.num_experts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of the wrapped Trainer (or the sum of the tasks' means), plus `twd_weight * L_TwD` in training."""
        training = self.model.training
        if training and self.args.mola_task_reduction == "sum":
            loss, outputs = self._sum_of_task_means(model, inputs)
        else:
            result: Any = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
            loss, outputs = result if return_outputs else (result, None)
        task_ids = inputs.get("mola_task_ids")
        routing, name, config = self._adapter
        # another method may look at the losses without a gradient, for which the term has no use
        if training and torch.is_grad_enabled() and config.uses_twd and task_ids is not None:
            twd = self._twd_loss(routing.routing.projected[name], task_ids, config.twd_temperature)
            self.record(terms={"twd_loss": twd})
            loss = self.add_mean_term(loss, config.twd_weight * twd, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    @property
    def needs_row_counts(self) -> bool:  # type: ignore[override]
        *_, config = self._adapter
        return super().needs_row_counts or config.uses_twd

    def _twd_loss(self, features: Tensor, task_ids: Tensor, temperature: float) -> Tensor:
        """Over the pairs of all processes' rows."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return twd_loss(features, task_ids, temperature=temperature)
        sizes = self.rows_of_all(len(task_ids))
        gather, first = partial(all_rows, sizes=sizes), first_row(len(task_ids), sizes)
        loss = twd_loss(features, task_ids, temperature=temperature, gather=gather, first=first)
        return loss + (processes - 1) * (loss - loss.detach())  # DDP takes the mean of the processes' gradients

    def _sum_of_task_means(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        outputs = model(**inputs)
        losses = sample_losses(self, logits_of(outputs), inputs["labels"])
        loss = combine_task_losses(
            losses,
            inputs["mola_task_ids"],
            num_tasks=self._num_tasks,
            reduction="sum",
            task_counts=self._task_counts,
        )
        # the counts are those of all processes, whose gradients DDP averages
        return loss * self.accelerator.num_processes, outputs

    def card_facts(self) -> dict[str, Any]:
        facts, names = super().card_facts(), self.column_names(self.args.mola_task_column)
        return with_hyper_parameters(
            facts, {"task ids": ", ".join(f"{i} {name}" for i, name in enumerate(names))} if names else {}
        )

    # ---------------------------------------------------------------------------------------------- evaluation
    @contextmanager
    def evaluation_context(self, inputs: dict[str, Any]) -> Iterator[None]:
        """The ids are set aside for the model, since `generate` (Seq2SeqTrainer) takes no unknown inputs."""
        routing, *_ = self._adapter
        # without ids what `set_task` has set holds on
        task_ids = inputs.get(self.args.mola_task_column, routing.routing.default_task_ids)
        before, self._ids_are_set_aside = self._ids_are_set_aside, True
        try:
            with super().evaluation_context(inputs), TaskSetting(routing.routing, task_ids):
                yield
        finally:
            self._ids_are_set_aside = before

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict, with the batch's ids."""
        routing, name, config = self._adapter
        task_ids = self.columns_of(inputs).get(self.args.mola_task_column)
        with self.evaluation_context(inputs):
            result = super().prediction_step(model, inputs, *args, **kwargs)
        if config.routing == "router" and task_ids is not None:
            weights = routing.routing.weights[name].detach()
            gathered = self.accelerator.gather_for_metrics((weights.contiguous(), task_ids))
            self._routing_sums.append(gathered)
        return result

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, with metrics per task and a router's mean weights per task."""
        self._routing_sums = []
        output = super().evaluation_loop(*args, **kwargs)
        if self._routing_sums:
            weights, ids = (torch.cat(parts).cpu().numpy() for parts in zip(*self._routing_sums, strict=True))
            tasks = max(int(ids.max()) + 1, self._num_tasks)
            self.routing_table = np.full((tasks, weights.shape[1]), np.nan)
            dataloader = kwargs.get("dataloader", args[0] if args else None)
            prefix = prefix_of(args, kwargs)
            dataset, column = getattr(dataloader, "dataset", None), self.args.mola_task_column
            labels = [group_label(dataset, column, task) for task in range(tasks)]
            named = {}
            for task in np.unique(ids):
                self.routing_table[task] = weights[ids == task].mean(axis=0)
                for expert, weight in enumerate(self.routing_table[task]):
                    named[f"{prefix}_routing_task_{labels[task]}_expert_{expert}"] = float(weight)
            output.metrics.update(named)
            if self.card is not None:
                table = [[None if np.isnan(weight) else float(weight) for weight in row] for row in self.routing_table]
                self.card.add_fact("routing_table", {"tasks": labels, "weights": table}, metrics=named)
        self._routing_sums = []
        return output


class MoLATrainer(MoLAMixin, Trainer):
    """`Trainer` for MoLA adapters; see `MoLAMixin`. Takes `MoLATrainingConfig` as `args`."""
