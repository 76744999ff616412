"""Processes that go through every update together, whatever rows each of them has of it."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import find_batch_size, gather_object
from transformers import Trainer
from transformers.trainer_utils import has_length

from hf_ext.trainers.processes import rows_of_processes

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_ALLOWED = (
    "allowed are as many in each (even_batches=True, or dataloader_drop_last=True): the others would wait for it"
)


class UnevenMixin(_Base):
    """N processes may have different numbers of rows in a micro-batch, but need as many micro-batches.

    One without a micro-batch would leave the others waiting in DDP's and in a method's exchanges: training is refused
    before the first step, or before the update at hand where the data have no length, in all processes.

    Evaluation always takes batches that were made even, whose repeated rows do not count: Trainer gathers them.
    Loaders of a user's own are refused where they have different lengths.
    """

    args: Any
    #: whether the loss needs to know how many rows each process has, whatever `accelerator_config` promises
    needs_row_counts: bool = False
    _rows_are_even = True  # in the update at hand, as far as they were compared
    _may_differ = False

    # ---------------------------------------------------------------------------------------------- micro-batches
    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        if self.accelerator.num_processes > 1:
            self._check_micro_batches(gather_object([number_of_batches(dataloader)]))
        return super().set_initial_training_values(args, dataloader)

    def _check_micro_batches(self, numbers: list[int | None]) -> None:
        """Refuse numbers of micro-batches an epoch, by process, that training would get beyond the smallest of."""
        known = [number for number in numbers if number is not None]
        self._may_differ = len(known) < len(numbers) or not self.args.accelerator_config.even_batches
        if len(set(known)) < 2:
            return
        needed = self.args.max_steps * self.args.gradient_accumulation_steps
        if self.args.max_steps <= 0 or needed > min(known):
            even = self.args.accelerator_config.even_batches
            raise ValueError(
                f"accelerator_config: found even_batches={even} with {_listed(known)} batches an epoch in processes "
                f"0 to {len(known) - 1}, {_ALLOWED}"
            )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        if self.accelerator.num_processes > 1 and (self.needs_row_counts or self._may_differ):
            self._compare_rows(batch_samples)
        return super()._get_num_items_in_batch(batch_samples, device)

    def _compare_rows(self, batches: list[Any]) -> None:
        """Of the update's micro-batches; one small message."""
        none, steps = -1, self.args.gradient_accumulation_steps
        rows = [int(find_batch_size(batch) or 0) for batch in batches] + [none] * (steps - len(batches))
        of_all = rows_of_processes(rows, self.args.device)
        numbers = [steps - own.count(none) for own in of_all]
        if len(set(numbers)) > 1:
            raise ValueError(
                f"train_dataloader: found {_listed(numbers)} micro-batches for step {self.state.global_step + 1} in "
                f"processes 0 to {len(numbers) - 1}, {_ALLOWED}"
            )
        self._rows_are_even = all(own == of_all[0] for own in of_all)

    # ---------------------------------------------------------------------------------------------- rows
    def rows_of_all(self, rows: int) -> list[int] | None:
        """How many rows each process has of the micro-batch at hand, of which this one has `rows`.

        None where they all have as many. All processes ask, or none does.
        """
        if self.accelerator.num_processes == 1 or self._rows_are_even:
            return None
        return [number for (number,) in rows_of_processes([rows], self.args.device)]

    def share_of_rows(self, rows: int) -> float:
        """By what a mean over this process's rows has to be multiplied, so that the processes' mean is that of all."""
        sizes = self.rows_of_all(rows)
        return 1.0 if sizes is None else rows * len(sizes) / sum(sizes)

    # ---------------------------------------------------------------------------------------------- evaluation
    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate, over as many batches in every process."""
        if self.accelerator.num_processes > 1:
            numbers = gather_object([number_of_batches(dataloader)])
            if len(set(numbers) - {None}) > 1:
                raise ValueError(
                    f"eval_dataset: found {_listed(numbers)} batches in processes 0 to {len(numbers) - 1}, allowed "
                    "are as many in each: the others would wait for it"
                )
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("is_training", args[4] if len(args) > 4 else False):
            return super()._get_dataloader(*args, **kwargs)
        configured, self.accelerator.even_batches = self.accelerator.even_batches, True
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.accelerator.even_batches = configured


def number_of_batches(dataloader: Any) -> int | None:
    """That this process gets in an epoch; None where nothing tells."""
    if not has_length(dataloader):
        return None
    number, shard = len(dataloader), getattr(dataloader, "batch_sampler", None)
    if not isinstance(shard, BatchSamplerShard) or shard.even_batches or shard.drop_last or not shard.split_batches:
        return number
    # accelerate counts a last batch that is too small for a part of it for every process
    whole: Any = shard.batch_sampler
    left = len(whole.sampler) % whole.batch_size if has_length(getattr(whole, "sampler", None)) else 0
    share = whole.batch_size // shard.num_processes
    return number - 1 if 0 < left <= share * shard.process_index else number


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
