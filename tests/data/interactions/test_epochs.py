"""Negatives of every epoch in a plain Trainer: other ones in each, the same on resuming and in several processes."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from transformers import Trainer, TrainingArguments

from hf_ext.data import Interactions, ItemTable, NextItems, NextItemsCollator, SetEpoch, SplitInteractions

ROWS, BATCH = 24, 4


def _data() -> NextItems:
    rng = np.random.default_rng(0)
    lengths = np.array([ROWS // 2 + 1] * 2)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = rng.integers(1, 1001, size=offsets[-1])
    log = Interactions([0, 1], ItemTable(list(range(1000))), offsets, rows, None)
    return NextItems(SplitInteractions(log, lengths, lengths, "all"), max_length=3, num_negatives=4)


class _Recorder(nn.Module):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def forward(
        self, input_ids: Tensor, candidate_ids: Tensor, candidate_log_q: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        self.seen.append(candidate_ids.tolist())
        return {"loss": self.weight * candidate_log_q.mean()}


def _trained(out: Path, *, resume: str | None = None) -> list[list[list[int]]]:
    arguments = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=3,
        per_device_train_batch_size=BATCH,
        save_steps=8,  # within the second epoch
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    model = _Recorder()
    trainer = Trainer(
        model, arguments, train_dataset=_data(), data_collator=NextItemsCollator(), callbacks=[SetEpoch()]
    )
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


def test_epochs_differ_and_a_resumed_run_repeats_them(tmp_path: Path) -> None:
    seen = _trained(tmp_path)
    assert len(seen) == 3 * ROWS // BATCH
    data, steps = _data(), ROWS // BATCH
    for epoch in range(3):
        data.set_epoch(epoch)
        expected = sorted(row["candidate_ids"].tolist() for row in data)
        assert sorted(chain(*seen[epoch * steps : (epoch + 1) * steps])) == expected
    assert _trained(tmp_path, resume=str(tmp_path / "checkpoint-8")) == seen[8:]


def _loader(data: NextItems, process: int, processes: int) -> Any:
    loader: DataLoader[Any] = DataLoader(
        data, batch_size=BATCH // processes, sampler=RandomSampler(data), collate_fn=NextItemsCollator()
    )
    return prepare_data_loader(
        loader, num_processes=processes, process_index=process, use_seedable_sampler=True, data_seed=5, rng_types=None
    )


def _epoch(loader: Any, epoch: int) -> list[list[int]]:
    """What a Trainer does at the beginning of an epoch."""
    SetEpoch().on_epoch_begin(None, _State(epoch), None, train_dataloader=loader)
    loader.set_epoch(epoch)
    return [row for batch in loader for row in batch["candidate_ids"].tolist()]


class _State:
    def __init__(self, epoch: float | None) -> None:
        self.epoch = epoch


@pytest.mark.parametrize("epoch", [0, 2])
def test_two_processes_draw_what_one_does(epoch: int) -> None:
    one = _epoch(_loader(_data(), 0, 1), epoch)
    two = [_epoch(_loader(_data(), process, 2), epoch) for process in range(2)]
    assert sorted(two[0] + two[1]) == sorted(one)


def test_a_loader_that_skips_is_told_too() -> None:
    whole = _epoch(_loader(_data(), 0, 1), 1)
    assert _epoch(skip_first_batches(_loader(_data(), 0, 1), 2), 1) == whole[2 * BATCH :]


def test_data_without_epochs_are_let_be() -> None:
    SetEpoch().on_epoch_begin(None, _State(1.5), None, train_dataloader=DataLoader([1, 2]))  # type: ignore[arg-type]
    SetEpoch().on_epoch_begin(None, _State(None), None)
    data = _data()
    SetEpoch().on_epoch_begin(None, _State(1.5), None, train_dataloader=DataLoader(data))
    assert data.epoch == 1
