"""Rows that two processes hand each other: each gets its own of the chosen ones, of every kind of column."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hf_ext.trainers.divbs.exchange import chosen_by_main, exchange_rows, gathered_by_main

SIZES = [3, 5]
CHOSEN = torch.tensor([7, 0, 4, 2, 3])
_PADDING = {"input_ids": 9}


def _batch(rank: int) -> dict[str, Any]:
    size, first, length = SIZES[rank], sum(SIZES[:rank]), 2 + rank
    rows = torch.arange(first, first + size)
    return {
        "labels": rows,
        "flags": rows % 2 == 0,
        "halves": (rows / 2).bfloat16()[:, None, None].expand(size, 2, 3),
        "input_ids": rows[:, None].expand(size, length),
        "words": [f"row {row}" * row for row in rows.tolist()],
        "nested": {"more": rows.double(), "names": [None] * size},
        "scalar": torch.tensor(1.5),
    }


def _wrong(kind: str, rank: int) -> dict[str, Any]:
    batch = _batch(rank)
    if rank == 1:
        batch |= {"names": {"more": batch["labels"]}, "rows": {"labels": batch["labels"][:2]}}[kind]
    return batch


def _process(rank: int, port: int, folder: str) -> None:
    numbers = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(numbers)
    dist.init_process_group("gloo")
    scores = gathered_by_main([_batch(rank)["labels"], _batch(rank)["halves"]], SIZES)
    chosen = chosen_by_main(CHOSEN if rank == 0 else None, len(CHOSEN), torch.device("cpu"))
    kept = {
        first: exchange_rows(_batch(rank), chosen, SIZES, padding=_PADDING, pad_first=first) for first in (True, False)
    }
    alone = exchange_rows(_batch(rank), torch.tensor([6]), SIZES, padding={})["words"]
    errors = []
    for kind in ("names", "rows"):
        try:
            exchange_rows(_wrong(kind, rank), chosen, SIZES, padding={})
        except ValueError as error:
            errors.append(str(error))
    torch.save([scores, kept, alone, errors], f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_each_process_gets_its_own_rows(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, (port, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / str(rank), weights_only=False) for rank in (0, 1)]
    labels, halves = found[0][0]
    assert found[1][0] is None and labels.tolist() == list(range(8)) and halves[7, 1, 2] == 3.5
    for rank, (_, kept, alone, errors) in enumerate(found):
        rows = CHOSEN[rank::2]
        for first, batch in kept.items():
            assert torch.equal(batch["labels"], rows) and torch.equal(batch["flags"], rows % 2 == 0)
            assert batch["halves"].dtype == torch.bfloat16
            assert torch.equal(batch["halves"], (rows / 2).bfloat16()[:, None, None].expand(-1, 2, 3))
            for ids, row in zip(batch["input_ids"].tolist(), rows.tolist(), strict=True):
                short = [9, row, row] if first else [row, row, 9]
                assert ids == (short if row < SIZES[0] else [row] * 3)
            assert batch["words"] == [f"row {row}" * row for row in rows.tolist()]
            assert torch.equal(batch["nested"]["more"], rows.double())
            assert batch["nested"]["names"] == [None] * len(rows) and batch["scalar"] == 1.5
        assert alone == (["row 6" * 6] if rank == 0 else [])
        assert "divbs_selection_scope: found 'global' with batches of" in errors[0]
        assert errors[1] == "labels: found shape (2,) in a batch of 5 samples, allowed is a row for each"
    assert found[0][3] == found[1][3]
