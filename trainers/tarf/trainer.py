"""Unlearning with any Trainer: target-aware forgetting and its baselines.

TARF (Zhu et al., ICLR 2026, arXiv:2406.08288). Written from the equations; the authors' code was not available.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import find_batch_size
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext.data.columns import ids_of_rows
from hf_ext.functional import per_sample_losses, tarf_objective
from hf_ext.trainers.cards import with_hyper_parameters
from hf_ext.trainers.labels import check_train_labels
from hf_ext.trainers.losses import logits_of, shifts_labels
from hf_ext.trainers.processes import rows_per_process
from hf_ext.trainers.tarf.arguments import TARFArguments
from hf_ext.trainers.tarf.forget_rows import check_column, split_rows
from hf_ext.trainers.tarf.forgetting import ForgetLoss, ForgetTerm, check_arguments, check_batch_size, check_data
from hf_ext.trainers.tarf.identification import Identification
from hf_ext.trainers.tarf.paired import PAIRED, ROW, updates_per_epoch
from hf_ext.trainers.tarf.plan import PHASES, Plan, Update, plan_of
from hf_ext.trainers.tarf.retention import Retention
from hf_ext.trainers.tarf.saliency import SaliencyMixin
from hf_ext.trainers.tarf.unlearned import UnlearningScoresMixin


@dataclass
class TARFConfig(TARFArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of TARF."""


class TARFMixin(UnlearningScoresMixin, SaliencyMixin):
    """Unlearns the forget data while training on the remaining data, `train_dataset`.

    Loss of an update: `k(t) * mean of (-loss) over forget rows + sum of (tau * loss) over remaining rows / their
    number`, in three phases: ascent only; from t1 on both; from T - t0 on retaining only. The rows are those of all
    micro-batches and processes. Where a part of what is to be forgotten is hidden in the remaining data
    (`tarf_selection`), the samples or groups that the ascent has carried along most by t1 are left out of them
    (tau = 0). By default nothing is, and t1 is 0.

    An epoch is one pass over the remaining data in all phases, since a Trainer's epochs have one length. A micro-batch
    brings forget rows along, cycled. The two parts go through the model one after the other, before one backward pass:
    neither needs the other's padding or is in its batch statistics of a BatchNorm, whose running statistics take in
    both, the forget rows first.

    A token-level loss counts every sample alike: it is the mean over the sample's own tokens. With `tarf_k=0` and
    nothing to leave out, and for the baseline `ft`, training is the wrapped Trainer's own.

    The accuracy on some retained rows before the first step and after the last is logged; where much of it is lost
    there is a warning. With an evaluation set, UA, RA, TA and MIA are measured after training, for log and card.

    Args:
        forget_dataset: the data to forget, a mask of `train_dataset`, or the indices of their rows there; by default
            `tarf_forget_column` says which these are.
        identify_dataset: the remaining rows, in the same order, as they should be looked at to identify what to leave
            out: without random augmentation. By default `train_dataset`.
        forget_loss: `forget_loss(losses, original_losses, lengths)`, all `[B]`, gives what is minimised on forget
            rows; the second is None unless the callable has a true attribute `needs_original`. See `forgetting.NPO`.

    Raises:
        ValueError: at construction or before the first step, for settings and data that cannot work.
        NonFiniteError: the loss or the gradient is not finite; the weights are those before that step.
    """

    args: Any  # TrainingArguments with TARFArguments mixed in
    method = "tarf"
    arguments = TARFArguments

    def __init__(
        self,
        *args: Any,
        forget_dataset: Any = None,
        identify_dataset: Any = None,
        forget_loss: ForgetLoss | None = None,
        **kwargs: Any,
    ) -> None:
        self.forget_dataset, self.identify_dataset = forget_dataset, identify_dataset
        self._update: Update | None = None
        super().__init__(*args, **kwargs)
        #: which remaining rows are left out, and why
        self.identification = Identification(self.args)
        #: what is left of the accuracy on remaining rows
        self.retention = Retention()
        size = len(self.forget_dataset) if hasattr(self.forget_dataset, "__len__") else 0
        self._forget_term = ForgetTerm(self.args, forget_loss, num_rows=size, shifted=shifts_labels(self))
        if not self._plan.is_neutral:
            self.loss_is_scaled_for_ga = True

    # ---------------------------------------------------------------------------------------------- arguments
    @property
    def own_columns(self) -> tuple[str, ...]:
        groups = [self.args.tarf_group_column] if self.args.tarf_group_column else []
        return (*super().own_columns, *groups)

    def check_arguments(self) -> None:
        column, values = self.args.tarf_forget_column, self.args.tarf_forget_value
        if self.train_dataset is not None:
            parts = split_rows(self.train_dataset, self.forget_dataset, column=column, values=values)
            self.train_dataset, self.forget_dataset = parts
        super().check_arguments()
        check_train_labels(self, rows=self.forget_dataset)
        plan = self._plan
        if plan.is_neutral or self.train_dataset is None:  # nothing to do, or made for evaluation only
            return
        check_arguments(self.args, own_loss=self.label_smoother is not None or self.compute_loss_func is not None)
        self.warn_of_other_loss(TARFMixin)
        self.refuse_other_methods("each would train on a loss of its own")
        needed = (self.model.main_input_name, *self.label_names)
        check_data(self.train_dataset, self.forget_dataset, self.identify_dataset, plan.selection, needed)
        check_batch_size(self.args, len(self.forget_dataset))
        check_column(self.train_dataset, "tarf_group_column", group := self.args.tarf_group_column)
        if group in (getattr(self.train_dataset, "column_names", None) or ()):
            ids_of_rows(self.train_dataset, group)

    @property
    def _plan(self) -> Plan:
        steps = self.args.max_steps
        return plan_of(self.args, steps / updates_per_epoch(self) if steps > 0 else float(self.args.num_train_epochs))

    # ---------------------------------------------------------------------------------------------- data
    @property
    def numbers_rows(self) -> bool:
        return self._plan.selection != "none"

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of an update, with their forget rows. What has to be measured before it is measured."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        plan = self._plan
        if plan.is_neutral or not batches:
            return batches, num_items
        t = plan.time(self.state.global_step, updates_per_epoch(self))
        forget = self.forget_dataset if self._forget_term.needs_original else None
        if self.state.global_step == 0 and plan.retains(plan.T):
            self.retention.begin(self, self._looked_at)
        if (
            self.identification.measure(self, plan, t, remaining=self._looked_at, forget=forget)
            and self.card is not None
        ):
            self.card.add_fact("identified", self.identification.identified)
        counts = [sum(find_batch_size(batch) for batch in batches), 0]
        if plan.weight(t) > 0:
            batches = self.paired(batches, self.forget_dataset, self._forget_batch_size)
            self._micro_batches_of_update = batches
            counts[1] = sum(len(batch[PAIRED][ROW]) for batch in batches)
        rows = counts
        if self.accelerator.num_processes > 1:
            rows = self.accelerator.reduce(torch.tensor(counts, device=device), reduction="sum")
        self._update = plan.update(t, retain_rows=rows[0], forget_rows=rows[1])
        return batches, num_items

    @property
    def _looked_at(self) -> Any:
        """The remaining rows, without random augmentation."""
        return self.train_dataset if self.identify_dataset is None else self.identify_dataset

    @property
    def _forget_batch_size(self) -> int:
        """Forget rows per micro-batch, in this process.

        Where `auto_find_batch_size` has shrunk the batches there are fewer, in proportion.
        """
        configured, current = self.args.train_batch_size, self._train_batch_size
        rows = (self.args.tarf_forget_batch_size or configured) * current // configured
        return max(rows_per_process(self.args, rows), 1)

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
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        columns, outputs, values, losses, retain_mask = self.batch_columns, None, None, None, None
        if update.k_t > 0:
            batch: Any = columns[PAIRED]
            forget = {name: value for name, value in batch.items() if name not in self.own_columns}
            outputs, original = model(**forget), self.identification.original.get("forget")
            values, *logs = self._forget_term(logits_of(outputs), forget["labels"], batch[ROW], original)
            self.record(terms=logs[0], diagnostics=logs[1])
        if update.retains:
            outputs = model(**inputs)
            losses = per_sample_losses(logits_of(outputs), inputs["labels"], shift_labels=self._forget_term.shifted)
            retain_mask = self.identification.mask_of(columns.get(ROW))
        objective = tarf_objective(
            values,
            losses,
            retain_mask,
            k_t=update.k_t,
            forget_rows=update.forget_rows,
            retain_rows=update.retain_rows,
        )
        if losses is not None:  # logged is the mean of this micro-batch, not its share in the update
            share = self.share_of_rows(len(losses)) / len(losses)
            self.record(terms={"retain_loss": objective["retain"] * update.retain_rows * share})
        # the rows are those of all processes, whose gradients DDP averages
        loss = objective["total"] * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def step_in_words(self) -> str:
        step = super().step_in_words()
        return step if self._update is None else f"{step} (phase {self._update.phase})"

    def non_finite_advice(self) -> str:
        return f"{super().non_finite_advice()}; lower tarf_k, or set tarf_max_forget_loss"

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; with k(t), the phase (1 to 3) and the share of remaining rows left out."""
        if "loss" in logs and self._update is not None:
            logs |= {"k_t": self._update.k_t, "phase": PHASES.index(self._update.phase) + 1}
            if self.identification.retained is not None:
                logs["dropped_fraction"] = 1 - float(self.identification.retained.mean())
        super().log(logs, *args, **kwargs)

    # ---------------------------------------------------------------------------------------------- checkpoints
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; what an earlier run has measured is measured anew, or read from the checkpoint."""
        self.identification, self.retention, self._update = Identification(self.args), Retention(), None
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self.log_measured(output, self.retention.end(self, self._looked_at, self.identification.retained))
        return output

    def checkpoint_state(self) -> dict[str, Any]:
        own = {} if self._plan.is_neutral else self.identification.state() | self.retention.state()
        return super().checkpoint_state() | own

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        self.identification.load(state)
        self.retention.load(state)

    def card_facts(self) -> dict[str, Any]:
        facts, about = super().card_facts(), self.identification.facts()
        if self.forget_dataset is not None:
            about["rows to forget"] = len(self.forget_dataset)
        return with_hyper_parameters(facts, about)


class TARFTrainer(TARFMixin, Trainer):
    """`Trainer` with TARF; see `TARFMixin`. Takes `TARFConfig` as `args`."""
