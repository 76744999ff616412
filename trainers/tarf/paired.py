"""A second data set next to the one that a Trainer goes through: a batch of it with every micro-batch."""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import has_length

from hf_ext.data.rows import WithColumns
from hf_ext.trainers.base import MethodMixin
from hf_ext.trainers.processes import rows_per_process

#: the column in which rows say where they stand in their data set
ROW = "row_in_dataset"
#: the column in which a batch carries that of the other data set
PAIRED = "paired_batch"


def numbered(dataset: Any) -> WithColumns:
    """A data set of dicts whose rows also say where they stand, as `ROW`."""
    return WithColumns(dataset, **{ROW: range(len(dataset))})


class _Order:
    """Rows of batch `first`, `first + 1`, ... of one process in one epoch, without end."""

    def __init__(self, size: int, batch_size: int, *, seed: int, process: int, processes: int, first: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.process, self.processes, self.first = process, processes, first

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        rows: list[int] = []  # those of all processes, from `begin` on
        begin, batch = 0, self.first * self.processes + self.process
        while True:
            while begin + len(rows) < (batch + 1) * self.batch_size:
                if begin + len(rows) <= batch * self.batch_size:
                    begin, rows = begin + len(rows), []
                rows += torch.randperm(self.size, generator=generator).tolist()
            offset = batch * self.batch_size - begin
            yield rows[offset : offset + self.batch_size]
            batch += self.processes


class PairedBatches:
    """Batches of a data set that go with the micro-batches of another, cycled in an order shuffled anew by every pass.

    Which rows go with a micro-batch is a function of seed, epoch and the micro-batch's place in the epoch alone. So a
    resumed run takes up the order where it stopped, and processes share it as they share the other data: the rows of
    an update are the same for N processes with G micro-batches of B rows as for one process with one of N G B.

    Args:
        dataset: with a length.
        batch_size: rows per micro-batch and process.
        collate: makes a batch of rows, which have `ROW`.
        seed: of the order.
        process, processes: which of how many.
        workers: processes that load.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        collate: Callable[[list[dict[str, Any]]], Any],
        *,
        seed: int,
        process: int = 0,
        processes: int = 1,
        workers: int = 0,
    ) -> None:
        self.dataset, self.batch_size, self.collate, self.seed = numbered(dataset), batch_size, collate, seed
        self.process, self.processes, self.workers = process, processes, workers
        self._batches: Iterator[Any] = iter(())
        self._next: tuple[int, int] | None = None

    @classmethod
    def of_trainer(cls, trainer: Trainer, dataset: Any, batch_size: int) -> "PairedBatches":
        """As a Trainer loads its own data, so many rows per micro-batch and process."""
        args = trainer.args
        return cls(
            dataset,
            batch_size,
            trainer._get_collator_with_removed_columns(trainer.data_collator, description="forget"),
            seed=args.seed if args.data_seed is None else args.data_seed,
            process=args.process_index,
            processes=args.world_size,
            workers=args.dataloader_num_workers,
        )

    def take(self, epoch: int, first: int, count: int) -> list[Any]:
        """The batches that go with micro-batches `first` to `first + count - 1` of an epoch, in this process."""
        if self._next != (epoch, first):
            order = _Order(
                len(self.dataset),
                self.batch_size,
                seed=self.seed + epoch,
                process=self.process,
                processes=self.processes,
                first=first,
            )
            self._batches = iter(load(self.dataset, order, self.collate, seed=self.seed + epoch, workers=self.workers))
        self._next = (epoch, first + count)
        return list(islice(self._batches, count))


def load(
    dataset: Any, batches: Any, collate: Callable[[list[dict[str, Any]]], Any], *, seed: int = 0, workers: int = 0
) -> DataLoader:
    """A loader of these batches of rows that leaves the global random state alone."""
    generator = torch.Generator().manual_seed(seed)  # a loader seeds its workers from it, in the main process too
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, generator=generator)


class PairedMixin(MethodMixin):
    """Knows where in their data set rows stand, and brings rows of a second data set along with every micro-batch."""

    args: Any
    model: Any
    _pairs: PairedBatches | None = None

    @property
    def own_columns(self) -> tuple[str, ...]:
        return (*super().own_columns, ROW, PAIRED)

    @property
    def numbers_rows(self) -> bool:
        """Whether the rows of a training batch say where they stand, as `ROW`."""
        raise NotImplementedError

    def get_train_dataloader(self) -> Any:
        """Trainer's, over numbered rows where these are needed."""
        data = self.train_dataset
        if self.numbers_rows:
            self.train_dataset = numbered(data)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = data

    def paired(self, batches: list[Any], dataset: Any, batch_size: int) -> list[dict[str, Any]]:
        """The micro-batches of the update at hand, each with so many rows of `dataset` as `PAIRED`."""
        epoch, update = divmod(self.state.global_step, updates_per_epoch(self))
        if self._pairs is None or self._pairs.batch_size != batch_size:
            self._pairs = PairedBatches.of_trainer(self, dataset, batch_size)
        pairs = self._pairs.take(epoch, update * self.args.gradient_accumulation_steps, len(batches))
        return [{**batch, PAIRED: pair} for batch, pair in zip(batches, pairs, strict=True)]


def updates_per_epoch(trainer: Any) -> int:
    """Of a Trainer; before it has made its loader, as far as the data's length tells."""
    args, data, loader = trainer.args, trainer.train_dataset, trainer.callback_handler.train_dataloader
    if loader is not None and has_length(loader):
        batches = len(loader)
    elif hasattr(data, "__len__"):
        rows = rows_per_process(args, trainer._train_batch_size) * args.world_size
        batches = len(data) // rows if args.dataloader_drop_last else math.ceil(len(data) / rows)
    else:
        return max(args.max_steps, 1)
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)
