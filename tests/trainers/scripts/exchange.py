"""Rows that processes hand each other, and what each of them has in the end."""

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from hf_ext.trainers.divbs.exchange import chosen_by_main, exchange_rows, gathered_by_main

_PADDING = {"input_ids": 9}


def batch_of(rank: int, sizes: list[int]) -> dict[str, Any]:
    size, first, length = sizes[rank], sum(sizes[:rank]), 2 + rank
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


def wrong_batch(kind: str, rank: int, sizes: list[int]) -> dict[str, Any]:
    batch = batch_of(rank, sizes)
    if rank == 1:
        batch |= {"names": {"more": batch["labels"]}, "rows": {"labels": batch["labels"][:2]}}[kind]
    return batch


def exchange(sizes: list[int], chosen: torch.Tensor, file: str) -> None:
    rank = dist.get_rank()
    batch = batch_of(rank, sizes)
    scores = gathered_by_main([batch["labels"], batch["halves"]], sizes)
    rows = chosen_by_main(chosen if rank == 0 else None, len(chosen), torch.device("cpu"))
    kept = {first: exchange_rows(batch, rows, sizes, padding=_PADDING, pad_first=first) for first in (True, False)}
    alone = exchange_rows(batch, torch.tensor([6]), sizes, padding={})["words"]
    errors = []
    for kind in ("names", "rows"):
        try:
            exchange_rows(wrong_batch(kind, rank, sizes), rows, sizes, padding={})
        except ValueError as error:
            errors.append(str(error))
    torch.save([scores, kept, alone, errors], f"{file}-{rank}")


def main() -> None:
    with open(sys.argv[1]) as file:
        options = json.load(file)
    state = PartialState(cpu=True)
    exchange(options["sizes"], torch.tensor(options["chosen"]), options["file"])
    if state.is_main_process:
        with open(options["result"], "w") as file:
            json.dump({"num_processes": state.num_processes}, file)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
