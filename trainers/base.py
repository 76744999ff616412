"""What all methods' trainers share: a cooperative mixin over any `transformers.Trainer`."""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from huggingface_hub import CommitInfo, HfApi
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy, denumpify_detensorize
from transformers.utils import PushInProgress, logging

from hf_ext.data.collators import KeepColumns
from hf_ext.data.columns import group_label, holds_text, text_values, with_ids
from hf_ext.hub_cards.callback import CardCallback
from hf_ext.hub_cards.create import create_card, is_handwritten
from hf_ext.hub_cards.push import push_folder
from hf_ext.trainers.checkpoints import (
    is_complete,
    newest_complete_checkpoint,
    read_state,
    restore_weights,
    write_state,
)

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


_logger = logging.get_logger(__name__)
#: what of a checkpoint is the model
_MODEL_FILES = (
    *("adapter_config.json", "adapter_model.safetensors", "config.json", "generation_config.json"),
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
)


class MethodMixin(_Base):
    """Put in front of a Trainer class: `class MyTrainer(SomeMethodMixin, SFTTrainer)`.

    A method's mixin derives from this one, overrides as few methods as it can and always calls `super()`. It gets:

    - `own_columns`: data set columns that the method needs. They survive `remove_unused_columns` and collators that
      drop them, never reach the model, and lie in `batch_columns` while a batch is worked on.
    - `record(name=value)`: loss terms, averaged on the device over the steps and processes between two logs, and
      logged beside Trainer's "loss".
    - `add_mean_term(loss, term, ...)`, `add_sum_term`: add a batch mean, or a part of a sum over the update's whole
      batch, at the right scale under gradient accumulation and in N processes.
    - `checkpoint_state` / `load_checkpoint_state`: the method's own state, saved before Trainer's files and restored
      by `train(resume_from_checkpoint=...)`, which takes the newest checkpoint that is complete.
    - `method`: its key in `hub_cards.METHODS`; Trainer's card is then ours, from what `card` has collected during the
      run and what `card_facts` adds, and neither `push_to_hub` nor `push_to_hub=True` sends pickles.
    - `groups`: columns by the name of what they tell apart (`{"task": "task_ids"}`); evaluation calls
      `compute_metrics` for every value of such a column too, and reports the worst.
    - `text_columns`: own columns that may hold names in place of ids.
    - `check_arguments`: called once the Trainer is made; raise ValueError there, before the first step.
    """

    method: str | None = None
    push_in_progress: Any  # of Trainer, which gives no type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batch_columns: dict[str, Tensor] = {}
        self._terms: dict[str, tuple[Tensor | float, int]] = {}
        self._evaluated_groups: dict[str, list[Tensor]] = {}
        self._names: dict[str, list[str]] = {}
        #: collects the facts of the model card; None for a mixin without `method`
        self.card: CardCallback | None = None
        if self.method is not None:
            methods = [vars(kind).get("method") for kind in type(self).__mro__]
            self.card = CardCallback(self.method, [name for name in methods if name and name != self.method])
            self.add_callback(self.card)
        if self.own_columns:
            self.data_collator = KeepColumns(self.data_collator, self.own_columns, self.column_bounds)
        self.check_arguments()

    def check_arguments(self) -> None:
        """Refuse what cannot work. Cooperative: call `super().check_arguments()`."""

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
        if column in self._names or column not in self.text_columns or not holds_text(dataset, column):
            return self._names.get(column)
        self._names[column] = text_values(dataset, column)
        return self._names[column]

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        for column in self.text_columns:
            if holds_text(dataset, column):
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
        inputs = super()._prepare_inputs(inputs)
        if found := [column for column in self.own_columns if column in inputs]:
            inputs = dict(inputs)
            self.batch_columns = {column: inputs.pop(column) for column in found}
        else:
            self.batch_columns = {}
        return inputs

    # ---------------------------------------------------------------------------------------------- losses
    def record(self, **terms: Tensor | float) -> None:
        """Note values of loss terms (scalars); they are averaged and logged with the next "loss"."""
        for name, value in terms.items():
            total, count = self._terms.get(name, (0.0, 0))
            value = value.detach().float() if isinstance(value, Tensor) else value
            self._terms[name] = (total + value, count + 1)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the means of the recorded terms where Trainer logs its "loss"."""
        if "loss" in logs:
            logs.update(self._mean_terms())
        super().log(logs, *args, **kwargs)

    def _mean_terms(self) -> dict[str, float]:
        own = {name: (float(total), count) for name, (total, count) in self._terms.items()}
        self._terms = {}
        everyones = gather_object([own]) if self.accelerator.num_processes > 1 else [own]
        names = sorted({name for terms in everyones for name in terms})
        sums = {name: np.sum([terms[name] for terms in everyones if name in terms], axis=0) for name in names}
        return {name: float(total / count) for name, (total, count) in sums.items()}

    def add_mean_term(self, loss: Tensor, term: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """`loss + term` where `term` is a mean over the micro-batch and `loss` is what `super().compute_loss` made.

        Trainer divides the sum by the accumulation steps unless the loss was normalised by `num_items_in_batch`; the
        term has to be divided either way.
        """
        steps = self.current_gradient_accumulation_steps
        return loss + (term / steps if self._is_normalised(num_items_in_batch) else term)

    def add_sum_term(self, loss: Tensor, term: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """`loss + term` where the update's loss is to contain the sum of the terms of all micro-batches and processes.

        Neither the accumulation steps nor DDP's averaging over processes divide the term.
        """
        term = term * self.accelerator.num_processes
        steps = self.current_gradient_accumulation_steps
        return loss + (term if self._is_normalised(num_items_in_batch) else term * steps)

    def _is_normalised(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether what `super().compute_loss` makes is meant for the whole update, as Trainer sees it."""
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return by_model or self.compute_loss_func is not None

    # ---------------------------------------------------------------------------------------------- checkpoints
    def checkpoint_state(self) -> dict[str, Any]:
        """Tensors and JSON values that a resumed run needs. Cooperative: `super().checkpoint_state() | {...}`."""
        return {}

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Take back what `checkpoint_state` gave (tensors on the CPU). Cooperative: call `super()`."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` resumes from the newest complete checkpoint in `output_dir`.

        Raises:
            ValueError: the checkpoint is not complete, or there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_complete_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"resume_from_checkpoint: found no complete checkpoint in {self.args.output_dir!r}, allowed is a "
                    "folder with one"
                )
        if resume_from_checkpoint:
            if not is_complete(resume_from_checkpoint):
                raise ValueError(
                    f"resume_from_checkpoint: found {resume_from_checkpoint!r} without a readable trainer_state.json "
                    "(saving was interrupted?), allowed is a complete checkpoint"
                )
            self.load_checkpoint_state(read_state(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        state = self.checkpoint_state()
        if state and self.args.should_save:
            # before Trainer's own files: it writes the one that marks a checkpoint complete, then rotates old ones out
            write_state(os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}"), state)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._restore_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._restore_weights(str(self.state.best_model_checkpoint))

    def _restore_weights(self, folder: str) -> None:
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            restore_weights(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), folder)

    # ---------------------------------------------------------------------------------------------- cards
    def card_facts(self) -> dict[str, Any]:
        """Arguments of `hub_cards.MethodCard` that this run knows. Cooperative: `super().card_facts() | {...}`."""
        assert self.card is not None  # asked for by create_model_card alone
        return self.card.card_facts()

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the method's card into `output_dir`, or Trainer's own for a mixin without `method`.

        Of Trainer's arguments the method's card has no use for `language`, `tasks`, `dataset_tags` and `dataset_args`.
        A `README.md` that somebody wrote or changed is kept, with a warning.
        """
        if self.card is None:
            super().create_model_card(
                language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
            )
        elif self.is_world_process_zero():
            folder = str(self.args.output_dir)
            given: dict[str, Any] = {
                "model_name": model_name,
                "license": license,
                "tags": [tags] if isinstance(tags, str) else tags,
                "base_model": finetuned_from,
                "dataset": ", ".join(dataset) if isinstance(dataset, list) else dataset,
            }
            given = {name: value for name, value in given.items() if value is not None}
            if is_handwritten(folder):
                warnings.warn(
                    f"{folder}/README.md holds text of somebody's: it is kept, no card is made", stacklevel=2
                )
            else:
                create_card(folder, self.method, run=self.card_facts(), **given)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save, write the card and publish `output_dir` with `hub_cards.push_folder`; Trainer's own without `method`.

        Unlike Trainer's it sends no pickle (`training_args.bin`) and tries again where the Hub fails. A `README.md`
        that somebody wrote or changed is published as it is.

        `push_to_hub=True` publishes every save in the same way, in the background, with `hub_strategy="every_save"`,
        and only what `save_model` or this method saves with "end". "checkpoint" and "all_checkpoints" do what
        "every_save" does: the states that a run resumes from are pickles and stay at home. Each save is a commit of
        its own, so the repo's history has the weights of all. As with Trainer's, a save that comes while an earlier
        one is being sent is left out; with `hub_always_push=True` training waits instead.

        Returns:
            The commit, or its future if not `blocking`; None on all processes but the first.
        """
        if self.card is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        self._finish_current_push()  # it reads the files that are written now
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        push = self._with_card(commit_message, token, revision, private, **kwargs)
        return push() if blocking else HfApi().run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.card is None:
            super()._push_from_checkpoint(checkpoint_folder)
            return
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        self._finish_current_push()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # copied, as Trainer does: saving the model again would take all processes, and checkpoints are rotated out
        folder = str(self.args.output_dir)
        for pattern in _MODEL_FILES:
            for file in Path(checkpoint_folder).glob(pattern):
                shutil.copy(file, folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        done = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        job = HfApi().run_as_future(self._with_card(f"Training in progress, {done}"))
        job.add_done_callback(_warn_of_failure)  # nobody asks for its result
        jobs: Any = [job]  # what Trainer gives, too, whatever the annotation says
        self.push_in_progress = PushInProgress(jobs)

    def _with_card(
        self,
        commit_message: str | None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Callable[[], CommitInfo]:
        """Write the card into `output_dir`; returns the call that publishes the folder."""
        folder = os.path.abspath(str(self.args.output_dir))
        repo_id = self.hub_model_id or self.args.hub_model_id or os.path.basename(folder)
        self.create_model_card(**kwargs)
        return partial(
            push_folder,
            folder,
            repo_id,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            token=token or self.args.hub_token,
        )

    # ---------------------------------------------------------------------------------------------- evaluation
    @property
    def groups(self) -> dict[str, str]:
        """Columns by what they tell apart. Cooperative: `super().groups | {"task": "task_ids"}`."""
        return {}

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict, and note the batch's groups."""
        result = super().prediction_step(model, inputs, *args, **kwargs)
        # in one order in all processes, which gather together
        for column in dict.fromkeys(column for column in self.groups.values() if column in self.batch_columns):
            gathered = self.accelerator.gather_for_metrics(self.batch_columns[column])
            self._evaluated_groups.setdefault(column, []).append(gathered)
        return result

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; `compute_metrics` is called for all samples and then for every group.

        Reports `<prefix>_<group>_<value>_<metric>` and `<prefix>_worst_<group>_<metric>`: the largest value of a
        metric that ends in "loss", the smallest of every other.
        """
        self._evaluated_groups = {}
        output = super().evaluation_loop(*args, **kwargs)
        found, self._evaluated_groups = self._evaluated_groups, {}
        if self.compute_metrics is not None and output.predictions is not None:
            assert output.metrics is not None  # a loop's own always are
            dataset = getattr(kwargs.get("dataloader", args[0] if args else None), "dataset", None)
            prefix = kwargs.get("metric_key_prefix", "eval")
            for name, column in self.groups.items():
                if column in found:
                    ids = torch.cat(found[column]).cpu().numpy()
                    output.metrics.update(self._group_metrics(output, name, column, ids, dataset, prefix))
        return output

    def _group_metrics(
        self, output: Any, name: str, column: str, ids: np.ndarray, dataset: Any, prefix: str
    ) -> dict[str, float]:
        found: dict[str, dict[str, float]] = {}  # by metric, by label
        for group in np.unique(ids):
            picked = ids == group
            prediction = EvalPrediction(_rows(output.predictions, picked), _rows(output.label_ids, picked))
            assert self.compute_metrics is not None
            label = group_label(dataset, column, int(group))
            for metric, value in denumpify_detensorize(self.compute_metrics(prediction)).items():
                found.setdefault(metric.removeprefix(f"{prefix}_"), {})[label] = value
        metrics: dict[str, float] = {}
        for metric, values in found.items():
            keys = {f"{prefix}_{name}_{label}_{metric}": label for label in values}
            metrics |= {key: values[label] for key, label in keys.items()}
            metrics[f"{prefix}_worst_{name}_{metric}"] = (max if metric.endswith("loss") else min)(values.values())
            if self.card is not None:
                self.card.add_groups({key: (f"{name} {label}", metric) for key, label in keys.items()})
        return metrics


def _warn_of_failure(push: Future[CommitInfo]) -> None:
    if (error := push.exception()) is not None:
        _logger.warning(f"the model was not published while training goes on: {error}")


def _rows(arrays: Any, picked: np.ndarray) -> Any:
    if arrays is None:
        return None
    if isinstance(arrays, Mapping):
        return {name: _rows(value, picked) for name, value in arrays.items()}
    if isinstance(arrays, tuple | list):
        return type(arrays)(_rows(value, picked) for value in arrays)
    return arrays[picked]
