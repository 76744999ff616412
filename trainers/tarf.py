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
from hf_ext.trainers.forgetting import NPO, ForgetLoss, ascent, check_data, lengths, random_labels, split_rows
from hf_ext.trainers.identification import Identification, logits_of
from hf_ext.trainers.losses import per_sample_losses, shifts_labels
from hf_ext.trainers.paired import ROW, Numbered, PairedBatches
from hf_ext.trainers.tarf_arguments import Plan, TARFArguments, plan_of

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
        self.forget_dataset, self.identify_dataset, self._given_forget_loss = (
            forget_dataset,
            identify_dataset,
            forget_loss,
        )
        self._pairs: PairedBatches | None = None
        self._update: _Update | None = None
        super().__init__(*args, **kwargs)
        #: which remaining rows are left out, and why
        self.identification = Identification(self.args)
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
        for option in ("packing", "padding_free"):
            if getattr(self.args, option, False):
                raise ValueError(f"{option}: found True, allowed is False: samples are forgotten one by one")
        if self.label_smoother is not None or self.compute_loss_func is not None:
            raise ValueError(
                "label_smoothing_factor, compute_loss_func: found one of them, allowed is neither: forgetting needs "
                "the plain loss of every sample"
            )
        others = {vars(kind).get("method") for kind in type(self).__mro__} - {None, "tarf"}
        if others:
            raise ValueError(
                f"tarf_method: found it combined with {', '.join(sorted(map(str, others)))}, allowed is no other "
                "method: each would train on a loss of its own"
            )
        check_data(self.train_dataset, self.forget_dataset, self.identify_dataset, plan.selection)
        columns, groups = getattr(self.train_dataset, "column_names", None), self.args.tarf_group_column
        if groups and isinstance(columns, list) and groups not in columns:
            raise ValueError(f"tarf_group_column: found {groups!r}, allowed are integer columns among {columns}")

    @property
    def _plan(self) -> Plan:
        steps = self.args.max_steps
        return plan_of(self.args, steps / self._updates_per_epoch if steps > 0 else float(self.args.num_train_epochs))

    @property
    def _updates_per_epoch(self) -> int:
        accumulated, loader = self.args.gradient_accumulation_steps, self.callback_handler.train_dataloader
        data: Any = self.train_dataset
        if loader is not None and hasattr(loader.dataset, "__len__"):
            batches = len(loader)
        elif hasattr(data, "__len__"):  # not training yet
            rows = self._train_batch_size * self.args.world_size
            batches = len(data) // rows if self.args.dataloader_drop_last else math.ceil(len(data) / rows)
        else:
            return max(self.args.max_steps, 1)
        return max(math.ceil(batches / accumulated), 1)

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
        epoch, update = divmod(self.state.global_step, self._updates_per_epoch)
        t = plan.time(self.state.global_step, self._updates_per_epoch)
        self._identify(plan, t)
        counts = [sum(find_batch_size(batch) for batch in batches), 0]
        if plan.weight(t) > 0:
            place = update * self.args.gradient_accumulation_steps
            forget = self._forget_batches.take(epoch, place, len(batches))
            batches = [{**batch, _FORGET: part} for batch, part in zip(batches, forget, strict=True)]
            counts[1] = sum(len(part[ROW]) for part in forget)
        rows = self.accelerator.reduce(torch.tensor(counts, device=device), reduction="sum")
        self._update = _Update(
            plan.weight(t), plan.retains(t), plan.phase(t), forget_rows=rows[1], retain_rows=rows[0]
        )
        return batches, num_items

    @property
    def _forget_batches(self) -> PairedBatches:
        if self._pairs is None:
            self._pairs = PairedBatches(
                self.forget_dataset,
                self.args.tarf_forget_batch_size or self._train_batch_size,
                self._get_collator_with_removed_columns(self.data_collator, description="forget"),
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
                process=self.args.process_index,
                processes=self.args.world_size,
                workers=self.args.dataloader_num_workers,
            )
        return self._pairs

    def _identify(self, plan: Plan, t: float) -> None:
        remaining = self.train_dataset if self.identify_dataset is None else self.identify_dataset
        wanted = {} if plan.selection == "none" else {"remaining": remaining}
        if getattr(self._forget_loss, "needs_original", False):
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
        self.record(forget_loss=losses.mean())
        if self.args.tarf_method == "random_labels":
            logits, count = logits_of(outputs), len(self.forget_dataset)
            drawn = {"num_labels": logits.shape[-1], "num_rows": count, "seed": self.args.seed}
            return per_sample_losses(logits, random_labels(inputs["labels"], rows, **drawn)), outputs
        original = self.identification.original.get("forget")
        if original is not None:
            original = original.to(rows.device)[rows]
        values = self._forget_loss(losses, original, lengths(inputs["labels"], shifted=shifts_labels(self)))
        if self.args.tarf_max_forget_loss is not None:
            within = losses.detach() <= self.args.tarf_max_forget_loss
            self.record(capped_fraction=1 - within.float().mean())
            values = torch.where(within, values, 0.0)
        return values, outputs

    @property
    def _forget_loss(self) -> ForgetLoss:
        if self._given_forget_loss is not None:
            return self._given_forget_loss
        return NPO(self.args.tarf_npo_beta) if self.args.tarf_forget_loss == "npo" else ascent

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
        facts, found = super().card_facts(), self.identification
        about = {} if self.forget_dataset is None else {"rows to forget": len(self.forget_dataset)}
        if found.retained is not None:
            about["remaining rows left out"] = int((found.retained == 0).sum())
        if "dropped" in found.found:
            about["identified"] = ", ".join(found.found["dropped"]) or "nothing"
        return facts | {"hyper_parameters": {**facts["hyper_parameters"], **about}}


class TARFTrainer(TARFMixin, Trainer):
    """`Trainer` with TARF; see `TARFMixin`. Takes `TARFConfig` as `args`."""
