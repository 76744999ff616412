"""What a Trainer of sharded weights (FSDP) saves and evaluates."""

import warnings
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import Trainer

from hf_ext.trainers.shards import share_statistics

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class ShardedMixin(_Base):
    """With FSDP all processes evaluate with the statistics of BatchNorms that are saved, those of the main one.

    Saving with sharded state dicts writes checkpoints that training resumes from, and no model's files: a warning says
    so where a model is to be saved.
    """

    model: Any

    def _share_statistics(self) -> None:
        if self.is_fsdp_enabled and self.accelerator.num_processes > 1:
            share_statistics(self.model)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._share_statistics()
        return super().evaluation_loop(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._share_statistics()  # a resumed run has them in all processes, and so has one that goes on
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, or say that this takes whole state dicts."""
        within_checkpoint = _internal_call and output_dir is not None
        if self.is_fsdp_enabled and not within_checkpoint:
            kind = str(self.accelerator.state.fsdp_plugin.state_dict_type).rpartition(".")[2]
            if kind != "FULL_STATE_DICT":
                warnings.warn(
                    f"fsdp_state_dict_type: found {kind}, with which no model is saved; allowed for that is "
                    "FULL_STATE_DICT: trainer.accelerator.state.fsdp_plugin.set_state_dict_type('FULL_STATE_DICT') "
                    "before save_model, or accelerate merge-weights with the last checkpoint's pytorch_model_fsdp_0",
                    stacklevel=2,
                )
        super().save_model(output_dir, _internal_call)
