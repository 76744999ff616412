"""What all methods' trainers share: a cooperative mixin over any `transformers.Trainer`."""

import dataclasses
import sys
import warnings
import weakref
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments

from hf_ext.data.collators import KeepColumns
from hf_ext.data.columns import holds_text, text_values, with_ids
from hf_ext.trainers.arguments import MethodArguments
from hf_ext.trainers.cards import CardMixin
from hf_ext.trainers.finite import FiniteMixin
from hf_ext.trainers.groups import GroupMetricsMixin
from hf_ext.trainers.labels import check_train_labels
from hf_ext.trainers.loss_scale import LossScaleMixin
from hf_ext.trainers.processes import check_rows_of_processes
from hf_ext.trainers.resuming import ResumingMixin
from hf_ext.trainers.sharded import ShardedMixin
from hf_ext.trainers.uneven import UnevenMixin

#: packages whose Trainers make the usual losses
_ECOSYSTEM = ("transformers", "trl", "hf_ext")


class MethodMixin(ResumingMixin, ShardedMixin, FiniteMixin, LossScaleMixin, UnevenMixin, CardMixin, GroupMetricsMixin):
    """Put in front of a Trainer class: `class MyTrainer(SomeMethodMixin, SFTTrainer)`.

    A method's mixin derives from this one, overrides as few methods as it can and always calls `super()`. It gets:

    - `own_columns`: data set columns that the method needs. They survive `remove_unused_columns` and collators that
      drop them, never reach the model, and lie in `batch_columns` while a batch is worked on.
    - `record(terms={...}, diagnostics={...})`: scalars, averaged on the device over the steps and processes between
      two logs, and logged next to Trainer's "loss"; a card shows the terms of the loss.
    - `add_mean_term(loss, term, ...)`, `add_sum_term`: add a batch mean, or a part of a sum over the update's whole
      batch, at the right scale under gradient accumulation and in N processes.
    - `checkpoint_state` / `load_checkpoint_state`: the method's own state, a part of every checkpoint, which its
      manifest proves to be complete, and restored by `train(resume_from_checkpoint=...)`.
    - `expect(name, finite)`: training stops before the optimizer steps where that, a loss or the gradient is not.
    - `method`: its key in `hub_cards.METHODS`; Trainer's card is then ours, from what `card` has collected during the
      run and what `card_facts` adds, and neither `push_to_hub` nor `push_to_hub=True` sends pickles.
    - `groups`: columns by the name of the groups that their values make (`{"task": "task_ids"}`); evaluation calls
      `compute_metrics` for every value of such a column too, and reports the worst.
    - `text_columns`: own columns that may hold names in place of ids.
    - `replaces_loss`: whether its training loss is none that `super().compute_loss` makes.
    - `rows_of_all(rows)`: how many rows each process has of the micro-batch at hand, where these differ; a loss that
      needs to know it says `needs_row_counts = True`.
    - `arguments`: the dataclass of the method's arguments, which `args` has to have mixed in.
    - `evaluation_context`: around forward passes outside of training.
    - `check_arguments`: called once the Trainer is made; raise ValueError there, before the first step.
    """

    replaces_loss: bool = False
    arguments: type | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._check_kind_of(kwargs.get("args", args[1] if len(args) > 1 else None))
        super().__init__(*args, **kwargs)
        self.batch_columns: dict[str, Tensor] = {}
        self._prepared: list[weakref.ref[Tensor]] = []  # what is left of the batch that these were taken out of
        self._recorded: dict[str, tuple[Tensor | float, int]] = {}
        self._loss_terms: dict[str, None] = {}  # names, in order
        self._names: dict[str, list[str]] = {}
        if self.own_columns:
            self.data_collator = KeepColumns(self.data_collator, self.own_columns, self.column_bounds)
        rows: Any = self.train_dataset
        if hasattr(rows, "__len__") and not len(rows):
            raise ValueError("train_dataset: found no rows, allowed are some")
        self.check_arguments()

    def _check_kind_of(self, args: Any) -> None:
        """Refuse arguments that lack those of a method, before anything asks for them."""
        for kind in type(self).__mro__:
            needed: Any = vars(kind).get("arguments")
            if needed is None or all(hasattr(args, field.name) for field in dataclasses.fields(needed)):
                continue
            siblings = vars(sys.modules[kind.__module__]).values()
            ready = (one.__name__ for one in siblings if _is_ready(one, needed))
            raise ValueError(
                f"args: found {'none' if args is None else type(args).__name__}, allowed is one with "
                f"{needed.__name__} mixed in, such as {next(ready, f'class MyConfig({needed.__name__}, ...)')}"
            )

    def check_arguments(self) -> None:
        """Refuse what cannot work. Cooperative: call `super().check_arguments()`."""
        check_rows_of_processes(self)
        check_train_labels(self)

    def warn_of_other_loss(self, after: type) -> None:
        """Say that the `compute_loss` of a user's class behind the mixin `after` has no part in training."""
        kinds = type(self).__mro__
        for kind in kinds[kinds.index(after) + 1 :]:
            if "compute_loss" in vars(kind) and kind.__module__.partition(".")[0] not in _ECOSYSTEM:
                warnings.warn(
                    f"compute_loss: found one of {kind.__name__}'s, which is called in evaluation alone: "
                    f"{self.method} trains on a loss of its own",
                    stacklevel=2,
                )

    def refuse_other_methods(self, reason: str, *, but: Collection[str] = ()) -> None:
        """For a method that no other one can be combined with, `but` for some.

        Raises:
            ValueError: naming the others that this Trainer is made of.
        """
        methods = {vars(kind).get("method") for kind in type(self).__mro__} - {None, *but}
        if len(methods) > 1:
            others, allowed = methods - {self.method}, f" but {', '.join(but)}" if but else ""
            raise ValueError(
                f"{self.method}: found it combined with {', '.join(sorted(map(str, others)))}, allowed is no other "
                f"method{allowed}: {reason}"
            )

    # ---------------------------------------------------------------------------------------------- columns
    @property
    def own_columns(self) -> tuple[str, ...]:
        """Columns the method needs. Cooperative: `(*super().own_columns, "mine")`."""
        return ()

    @property
    def column_bounds(self) -> dict[str, int]:
        """Own columns whose ids must lie in `[0, bound)`; checked on the CPU, batch by batch. Cooperative."""
        return {}

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Own columns whose values may be names: they become ids, in the order of `column_names`. Cooperative."""
        return ()

    def column_names(self, column: str) -> list[str] | None:
        """The names behind a column's ids, those of the training data first; None for a column of integers."""
        dataset: Any = self.train_dataset
        holds_names = isinstance(dataset, Dataset) and holds_text(dataset, column)
        if column in self._names or column not in self.text_columns or not holds_names:
            return self._names.get(column)
        self._names[column] = text_values(dataset, column)
        return self._names[column]

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        for column in self.text_columns:
            if isinstance(dataset, Dataset) and holds_text(dataset, column):
                names = self._names.setdefault(column, self.column_names(column) or [])
                names += [name for name in text_values(dataset, column) if name not in names]
                dataset = with_ids(dataset, column, names)
        return super()._get_dataloader(dataset, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: list[str] = self._signature_columns or []
        self._signature_columns: Any = [*known, *(column for column in self.own_columns if column not in known)]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device and take the method's own columns out of it, into `batch_columns`."""
        self.batch_columns = self.columns_of(inputs)
        if any(column in inputs for column in self.own_columns):
            inputs = {name: value for name, value in inputs.items() if name not in self.own_columns}
        inputs = super()._prepare_inputs(inputs)
        self._prepared = [weakref.ref(value) for value in inputs.values() if isinstance(value, Tensor)]
        return inputs

    def columns_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The method's own columns of a batch, on the device; also of one that they have just been taken out of.

        A user's `training_step` or `prediction_step` may prepare a batch and hand it on, to be prepared again.
        """
        own = {column: self._prepare_input(inputs[column]) for column in self.own_columns if column in inputs}
        known = [value for reference in self._prepared if (value := reference()) is not None]
        is_prepared = any(value is one for value in inputs.values() for one in known)
        return own or (self.batch_columns if is_prepared else {})

    def evaluation_context(self, inputs: dict[str, Any]) -> AbstractContextManager[Any]:
        """What a forward pass outside of training needs around it, for a batch as the dataloader gives it.

        Cooperative: enter `super().evaluation_context(inputs)` too.
        """
        return nullcontext()

    # ---------------------------------------------------------------------------------------------- losses
    def record(
        self,
        *,
        terms: Mapping[str, Tensor | float] | None = None,
        diagnostics: Mapping[str, Tensor | float] | None = None,
    ) -> None:
        """Note scalars; their means are logged with the next "loss".

        Args:
            terms: of the training loss, by name; the card lists and plots them.
            diagnostics: whatever else tells how the training goes.
        """
        self.declare_loss_terms(terms or {})
        for name, value in {**(terms or {}), **(diagnostics or {})}.items():
            total, count = self._recorded.get(name, (0.0, 0))
            value = value.detach().float() if isinstance(value, Tensor) else value
            self._recorded[name] = (total + value, count + 1)

    def declare_loss_terms(self, names: Iterable[str]) -> None:
        """Names under which terms of the training loss are logged; for those that are not given to `record`."""
        self._loss_terms |= dict.fromkeys(names)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the means of what was recorded where Trainer logs its "loss"."""
        if "loss" in logs:
            logs.update(self._recorded_means())
            if self.card is not None:
                self.card.add_loss_terms(self._loss_terms)
        super().log(logs, *args, **kwargs)

    def _recorded_means(self) -> dict[str, float]:
        own = {name: (float(total), count) for name, (total, count) in self._recorded.items()}
        self._recorded = {}
        gathered = [(own, list(self._loss_terms))]
        if self.accelerator.num_processes > 1:
            gathered = gather_object(gathered)
        for _, terms in gathered:  # a term may have occurred in some processes only
            self.declare_loss_terms(terms)
        names = sorted({name for recorded, _ in gathered for name in recorded})
        sums = {name: np.sum([one[name] for one, _ in gathered if name in one], axis=0) for name in names}
        return {name: float(total / count) for name, (total, count) in sums.items()}

    def _hp_search_setup(self, trial: Any) -> None:
        """Set a trial's arguments of a hyper-parameter search, and check them as those of a constructor."""
        super()._hp_search_setup(trial)
        if isinstance(self.args, MethodArguments):
            self.args.check_options()


def _is_ready(kind: Any, needed: type) -> bool:
    """Whether a class is TrainingArguments with these mixed in."""
    return isinstance(kind, type) and issubclass(kind, needed) and issubclass(kind, TrainingArguments)
