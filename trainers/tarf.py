"""Unlearning with any Trainer: target-aware forgetting and its baselines.

TARF (Zhu et al., ICLR 2026, arXiv:2406.08288). Written from the equations; the authors' code was not available.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import find_batch_size
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext.trainers.base import MethodMixin
from hf_ext.trainers.forgetting import ForgetLoss, ForgetTerm, check_arguments, check_column, check_data, split_rows
from hf_ext.trainers.identification import Identification, logits_of
from hf_ext.trainers.losses import per_sample_losses, shifts_labels
from hf_ext.trainers.paired import ROW, Numbered, PairedBatches
from hf_ext.trainers.tarf_arguments import Plan, TARFArguments, plan_of, updates_per_epoch

_FORGET = "tarf_forget_batch"  # where a batch carries its forget rows


@dataclass
class TARFConfig(TARFArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of TARF."""


@dataclass(frozen=True)
class _Update:
    """What an optimiser step is made of; rows are those of all its micro-batches and processes."""

    weight: float
    retains: bool
    phase: int
    forget_rows: Tensor
    retain_rows: Tensor


class TARFMixin(MethodMixin):
    """Unlearns the forget data while training on the remaining data, `train_dataset`.

    Loss of an update: `k(t) * mean of (-loss) over forget rows + sum of (tau * loss) over remaining rows / their
    number`, in three phases: ascent only; from t1 on both, less the remaining samples or groups (tau = 0) that the
    ascent has carried along most; from T - t0 on retaining only. The rows are those of all micro-batches and
    processes.

    An epoch is one pass over the remaining data in all phases, since a Trainer's epochs have one length; in phase I
    they only count the updates. (How long the authors' phase I is in updates is not known to us.) A micro-batch brings
    forget rows along, cycled. The two parts go through the model one after the other, before one backward pass: texts
    of different lengths need no common padding, and neither part sees the other in a BatchNorm's batch statistics, but
    its running statistics take in both, the forget rows first. Both parts' activations are in memory at once.

    A token-level loss counts every sample alike: it is the mean over the sample's own tokens. With `tarf_k=0`,
    `tarf_t1=0` and `tarf_selection="none"`, and for the baseline `ft`, training is the wrapped Trainer's own.

    Args:
        forget_dataset: the data to forget, or the indices of their rows in `train_dataset`; by default
            `tarf_forget_column` says which these are.
        identify_dataset: the remaining rows, in the same order, as they should be looked at to identify what to leave
            out: without random augmentation. By default `train_dataset`.
        forget_loss: `forget_loss(losses, original_losses, lengths)`, all `[B]`, gives what is minimised on forget
            rows; the second is None unless the callable has a true attribute `needs_original`. See `forgetting.NPO`.

    Raises:
        ValueError: at construction or before the first step, for settings and data that cannot work.
        FloatingPointError: the gradient is not finite; the weights are those before that step.
    """

    args: Any  # TrainingArguments with TARFArguments mixed in
    model: Any
    method = "tarf"

    def __init__(
        self,
        *args: Any,
        forget_dataset: Any = None,
        identify_dataset: Any = None,
        forget_loss: ForgetLoss | None = None,
        **kwargs: Any,
    ) -> None:
        self.forget_dataset, self.identify_dataset = forget_dataset, identify_dataset
        self._pairs: PairedBatches | None = None
        self._update: _Update | None = None
        super().__init__(*args, **kwargs)
        #: which remaining rows are left out, and why
        self.identification = Identification(self.args)
        self._forget_term = ForgetTerm(self.args, forget_loss)
        if not self._plan.is_neutral:
            self.loss_is_scaled_for_ga = True

    # ---------------------------------------------------------------------------------------------- arguments
    @property
    def own_columns(self) -> tuple[str, ...]:
        groups = [self.args.tarf_group_column] if self.args.tarf_group_column else []
        return (*super().own_columns, ROW, _FORGET, *groups)

    def check_arguments(self) -> None:
        column, values = self.args.tarf_forget_column, self.args.tarf_forget_value
        if self.train_dataset is not None:
            parts = split_rows(self.train_dataset, self.forget_dataset, column=column, values=values)
            self.train_dataset, self.forget_dataset = parts
        super().check_arguments()
        plan = self._plan
        if plan.is_neutral or self.train_dataset is None:  # nothing to do, or made for evaluation only
            return
        check_arguments(self.args, own_loss=self.label_smoother is not None or self.compute_loss_func is not None)
        others = {vars(kind).get("method") for kind in type(self).__mro__} - {None, "tarf"}
        if others:
            raise ValueError(
                f"tarf_method: found it combined with {', '.join(sorted(map(str, others)))}, allowed is no other "
                "method: each would train on a loss of its own"
            )
        check_data(self.train_dataset, self.forget_dataset, self.identify_dataset, plan.selection)
        check_column(self.train_dataset, "tarf_group_column", self.args.tarf_group_column)

    @property
    def _plan(self) -> Plan:
        steps = self.args.max_steps
        return plan_of(self.args, steps / updates_per_epoch(self) if steps > 0 else float(self.args.num_train_epochs))

    # ---------------------------------------------------------------------------------------------- data
    def get_train_dataloader(self) -> Any:
        """The remaining data, whose rows know their index where that is needed."""
        data = self.train_dataset
        if self._plan.selection != "none":
            self.train_dataset = Numbered(data)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = data

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of an update, with their forget rows. What has to be measured before it is measured."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        plan = self._plan
        if plan.is_neutral or not batches:
            return batches, num_items
        epoch_length = updates_per_epoch(self)
        epoch, update = divmod(self.state.global_step, epoch_length)
        t = plan.time(self.state.global_step, epoch_length)
        self._identify(plan, t)
        counts = [sum(find_batch_size(batch) for batch in batches), 0]
        if plan.weight(t) > 0:
            place = update * self.args.gradient_accumulation_steps
            if self._pairs is None:
                size = self.args.tarf_forget_batch_size or self._train_batch_size
                self._pairs = PairedBatches.beside(self, self.forget_dataset, size)
            forget = self._pairs.take(epoch, place, len(batches))
            batches = [{**batch, _FORGET: part} for batch, part in zip(batches, forget, strict=True)]
            counts[1] = sum(len(part[ROW]) for part in forget)
        rows = self.accelerator.reduce(torch.tensor(counts, device=device), reduction="sum")
        self._update = _Update(
            plan.weight(t), plan.retains(t), plan.phase(t), forget_rows=rows[1], retain_rows=rows[0]
        )
        return batches, num_items

    def _identify(self, plan: Plan, t: float) -> None:
        remaining = self.train_dataset if self.identify_dataset is None else self.identify_dataset
        wanted = {} if plan.selection == "none" else {"remaining": remaining}
        if self._forget_term.needs_original:
            wanted["forget"] = self.forget_dataset
        found = self.identification
        found.measure_original(self, wanted, grouped=plan.selection == "groups")
        if plan.selection != "none" and plan.retains(t) and found.retained is None:
            features = getattr(self.train_dataset, "features", None) or {}
            found.decide(self, remaining, selection=plan.selection, features=features)
            if self.card is not None and "groups" in found.found:
                self.card.add_fact("identified", found.found)

    # ---------------------------------------------------------------------------------------------- losses
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's part of the loss of an update; the wrapped Trainer's loss in evaluation."""
        update = self._update
        if update is None or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        columns, terms, outputs = self.batch_columns, [], None
        if update.weight > 0:
            values, outputs = self._forget_values(model, dict(columns[_FORGET]))
            terms.append(update.weight * values.sum() / update.forget_rows)
        if update.retains:
            losses, outputs = self._losses(model, inputs)
            if self.identification.retained is not None:
                retained = self.identification.retained.to(losses.device)[columns[ROW]]
                # where, not a product: the loss of what is left out may be infinite
                losses = torch.where(retained > 0, losses, 0.0)
            self.record(retain_loss=losses.mean())
            terms.append(losses.sum() / update.retain_rows)
        # the rows are those of all processes, whose gradients DDP averages
        loss = torch.stack(terms).sum() * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        outputs = model(**inputs)
        return per_sample_losses(logits_of(outputs), inputs["labels"], shift_labels=shifts_labels(self)), outputs

    def _forget_values(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """What is minimised on these forget rows, one value each."""
        rows, inputs = batch[ROW], {name: value for name, value in batch.items() if name not in self.own_columns}
        losses, outputs = self._losses(model, inputs)
        values, terms = self._forget_term(
            losses,
            logits_of(outputs),
            inputs["labels"],
            rows,
            original=self.identification.original.get("forget"),
            num_rows=len(self.forget_dataset),
            shifted=shifts_labels(self),
        )
        self.record(forget_loss=losses.mean(), **terms)
        return values, outputs

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        # a loss scaler takes such gradients for its own business
        if self._update is not None and self.accelerator.scaler is None and not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"the gradient is not finite in step {self.state.global_step + 1} (phase {self._update.phase}); the "
                "weights are those before it. Lower tarf_k or the learning rate, or set tarf_max_forget_loss"
            )
        return norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; with k(t), the phase (1 to 3) and the share of remaining rows left out."""
        if "loss" in logs and self._update is not None:
            logs |= {"k_t": self._update.weight, "phase": self._update.phase}
            if self.identification.retained is not None:
                logs["dropped_fraction"] = 1 - float(self.identification.retained.mean())
        super().log(logs, *args, **kwargs)

    # ---------------------------------------------------------------------------------------------- checkpoints
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; what an earlier run has measured is measured anew, or read from the checkpoint."""
        self.identification, self._update = Identification(self.args), None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def checkpoint_state(self) -> dict[str, Any]:
        return super().checkpoint_state() | ({} if self._plan.is_neutral else self.identification.state())

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        self.identification.load(state)

    def card_facts(self) -> dict[str, Any]:
        facts, about = super().card_facts(), self.identification.facts()
        if self.forget_dataset is not None:
            about["rows to forget"] = len(self.forget_dataset)
        return facts | {"hyper_parameters": {**facts["hyper_parameters"], **about}}


class TARFTrainer(TARFMixin, Trainer):
    """`Trainer` with TARF; see `TARFMixin`. Takes `TARFConfig` as `args`."""
