"""Saving and resuming in any Trainer: complete checkpoints with a method's own state, or a clear refusal."""

import os
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_ext._files import read_json
from hf_ext._models import unwrapped
from hf_ext.hub_cards.callback import CardCallback
from hf_ext.trainers.checkpoints import (
    TRAINER_STATE,
    check_checkpoint,
    fault_of_weights,
    newest_complete_checkpoint,
    read_state,
    restore_weights,
    states_left_out,
    unmark,
    write_state,
)
from hf_ext.trainers.manifest import write_manifest
from hf_ext.trainers.processes import decided_by_main

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class ResumingMixin(_Base):
    """A checkpoint gets a method's state before Trainer's files, and a manifest after all others.

    The manifest comes last of all, after the callbacks' `on_save` and when all processes are done; files that
    callbacks add are a part of it. Until it is there, a checkpoint is judged by the files that must be there, as one
    of a plain Trainer is: `trainer_state.json` is only written when all processes have written their part, and old
    checkpoints are removed after that. So there is a complete one at any time, also with `save_total_limit=1`.

    `checkpoint_checksums = False`, for a class or a Trainer, leaves the checksums out.
    """

    checkpoint_checksums: bool = True
    card: CardCallback | None  # of CardMixin

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._saved: str | None = None  # a checkpoint that has no manifest yet
        self._callbacks_follow = False
        super().__init__(*args, **kwargs)

    def checkpoint_state(self) -> dict[str, Any]:
        """Tensors and JSON values that a resumed run needs. Cooperative: `super().checkpoint_state() | {...}`.

        Called in all processes; what the main one returns is saved.
        """
        return {}

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Take back what `checkpoint_state` gave (tensors on the CPU). Cooperative: call `super()`."""

    # ---------------------------------------------------------------------------------------------- resuming
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` resumes from the newest complete checkpoint in `output_dir`.

        A warning says what is wrong with newer ones, and what of the run's state a checkpoint does not have (one saved
        with `save_only_model` has the weights alone).

        Raises:
            ValueError: before anything changes. The checkpoint is not complete, and the error says which file is
                missing, truncated or changed; or none is. Or the best one is not, with `load_best_model_at_end`.
        """
        folder = None
        if resume_from_checkpoint:
            folder = decided_by_main(lambda: self._complete_checkpoint(resume_from_checkpoint))
            self.load_checkpoint_state(read_state(folder))
        if self.card is not None:
            self.card.resumed_from = folder
        return super().train(folder, *args, **kwargs)

    def _complete_checkpoint(self, wanted: Any) -> str:
        needs_state = not self.args.save_only_model
        if wanted is True:
            folder = newest_complete_checkpoint(str(self.args.output_dir), needs_state=needs_state)
        else:
            folder = check_checkpoint(wanted, needs_state=needs_state)
        best = read_json(os.path.join(folder, TRAINER_STATE)).get("best_model_checkpoint")
        if self.args.load_best_model_at_end and best and os.path.isdir(best):
            check_best(best)
        if not self.is_deepspeed_enabled and (missing := self._states_left_out(folder)):
            warnings.warn(
                f"resume_from_checkpoint: found {folder!r} without {', '.join(missing)} (as save_only_model=True "
                "saves it, or another number of processes): what these hold starts anew, and the run will differ from "
                "one that was not interrupted",
                stacklevel=2,
            )
        return folder

    def _states_left_out(self, folder: str) -> list[str]:
        process = self.args.process_index if self.args.world_size > 1 else None
        return states_left_out(folder, process=process, scales_loss=self.accelerator.scaler is not None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._restore_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        decided_by_main(lambda: check_best(best))
        super()._load_best_model()
        self._restore_weights(best)

    def _restore_weights(self, folder: str) -> None:
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            restore_weights(unwrapped(self.model), folder)

    # ---------------------------------------------------------------------------------------------- saving
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = os.path.join(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        state = self.checkpoint_state()
        if self.args.should_save:
            unmark(folder)
            if state:
                write_state(folder, state)
            if self.card is not None:
                self.card.save(folder)
        super()._save_checkpoint(model, trial)
        self._saved = folder
        if not self._callbacks_follow:
            self._complete_saving()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # what comes next, in the main process, says that all is written

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._callbacks_follow, self._saved = True, None
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        finally:
            self._callbacks_follow = False
        self._complete_saving()

    def _complete_saving(self) -> None:
        """The last file of a checkpoint, once every process has written its own."""
        folder, self._saved = self._saved, None
        if folder is None:
            return
        self.accelerator.wait_for_everyone()
        if self.args.should_save and os.path.isdir(folder):  # a callback may have moved it elsewhere
            write_manifest(folder, checksums=self.checkpoint_checksums)


def check_best(folder: str) -> None:
    """Look at the weights of the best checkpoint before they are needed.

    Raises:
        ValueError: they are not as they were saved.
    """
    if (fault := fault_of_weights(folder)) is not None:
        raise ValueError(
            f"load_best_model_at_end: found {fault} in {folder!r}, the best checkpoint, allowed is a complete one, or "
            "none (without the folder a resumed run goes on and does not load it)"
        )
