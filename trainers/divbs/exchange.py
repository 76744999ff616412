"""What processes that select together hand each other: scores to the main one, its choice to all, kept rows."""

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hf_ext.trainers.divbs.rows import map_rows


def gathered_by_main(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor] | None:
    """Rows of all processes in the main one, None in the others: one message of `b` rows from each.

    Args:
        tensors: each `[b, ...]`.
        sizes: b of every process.
    """
    rank, own = dist.get_rank(), sizes[dist.get_rank()]
    to_main = [own] + [0] * (len(sizes) - 1)
    rows = _sent(_packed(tensors, own), to_main, list(sizes) if rank == 0 else [0] * len(sizes))
    return _unpacked(rows, tensors) if rank == 0 else None


def chosen_by_main(rows: Tensor | None, count: int, device: torch.device) -> Tensor:
    """The main process's rows, int64 `[count]`, in all processes."""
    chosen = torch.empty(count, dtype=torch.int64, device=device) if rows is None else rows.to(device).contiguous()
    dist.broadcast(chosen, src=0)
    return chosen


def exchange_rows(
    batch: Mapping[str, Any],
    rows: Tensor,
    sizes: Sequence[int],
    *,
    padding: Mapping[str, int],
    pad_first: bool = False,
) -> dict[str, Any]:
    """This process's share of some rows of all processes' batches; no row goes anywhere else.

    Sequences are padded to the longest of all batches.

    Args:
        batch: this process's.
        rows: the same in all processes: row i of process r has the number `sum(sizes[:r]) + i`, and the j-th of these
            goes to process j modulo the number of processes.
        sizes: rows of each process's batch.
        padding: value by name of the input, 0 where there is none.
        pad_first: pad on the left.

    Raises:
        ValueError: a tensor or list with another first dimension; in all processes, batches that are not alike.
    """
    rank, processes = dist.get_rank(), len(sizes)
    firsts, chosen = torch.tensor([0, *sizes]).cumsum(0), rows.cpu()
    owners = torch.searchsorted(firsts, chosen, right=True) - 1
    receivers = torch.arange(len(chosen)) % processes
    mine, arriving = owners == rank, owners[receivers == rank]
    order = receivers[mine].argsort(stable=True)
    leaving = (chosen[mine] - firsts[rank])[order]
    places = arriving.argsort(stable=True).argsort()  # of the kept rows among those that arrive, owner by owner
    sent, received = (torch.bincount(part, minlength=processes).tolist() for part in (receivers[mine], arriving))

    columns, lengths = _columns(batch, sizes[rank])
    tensors = [
        _lengthened(value.index_select(0, leaving.to(value.device)), length, padding.get(name, 0), pad_first)
        for (name, value), length in zip(columns.tensors, lengths, strict=True)
    ]
    taken = iter(_unpacked(_sent(_packed(tensors, len(leaving)), sent, received), tensors))
    lists: Iterator[list[Any]] = iter(())
    if columns.lists:
        objects = _sent_objects([[values[row] for values in columns.lists] for row in leaving.tolist()], sent, rows)
        lists = iter([[objects[place][number] for place in places.tolist()] for number in range(len(columns.lists))])

    def of_tensor(name: str, value: Tensor) -> Tensor:
        return next(taken)[places.to(value.device)]

    return map_rows(batch, sizes[rank], of_tensor, lambda _: next(lists))


@dataclass
class _Columns:
    """What of a batch has rows, in the order of `map_rows`."""

    tensors: list[tuple[str, Tensor]] = field(default_factory=list)
    lists: list[list[Any]] = field(default_factory=list)


def _columns(batch: Mapping[str, Any], size: int) -> tuple[_Columns, list[int]]:
    """A batch's columns, and of every tensor the largest second dimension that it has in any process."""
    columns, error = _Columns(), ""

    def of_tensor(name: str, value: Tensor) -> Tensor:
        columns.tensors.append((name, value))
        return value

    def of_list(values: list[Any]) -> list[Any]:
        columns.lists.append(values)
        return values

    try:
        map_rows(batch, size, of_tensor, of_list)
    except ValueError as wrong:
        error = str(wrong)
    kinds = [(name, str(value.dtype), value.ndim, tuple(value.shape[2:])) for name, value in columns.tensors]
    lengths = [value.shape[1] if value.ndim > 1 else 1 for _, value in columns.tensors]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (error, (kinds, len(columns.lists)), lengths))
    if errors := [each for each, _, _ in gathered if each]:
        raise ValueError(errors[0])
    for process, (_, found, _) in enumerate(gathered):
        if found != gathered[0][1]:
            raise ValueError(
                f"divbs_selection_scope: found 'global' with batches of {gathered[0][1][0]} in process 0 and "
                f"{found[0]} in process {process}, allowed are batches that differ in their second dimension alone"
            )
    return columns, [max(of_all) for of_all in zip(*(lengths for _, _, lengths in gathered), strict=True)]


def _lengthened(value: Tensor, length: int, filling: int, fill_first: bool) -> Tensor:
    """`[n, T, ...] -> [n, length, ...]`; what has no second dimension stays."""
    if value.ndim < 2 or value.shape[1] == length:
        return value
    made = value.new_full((len(value), length, *value.shape[2:]), filling)
    made[:, slice(length - value.shape[1], None) if fill_first else slice(value.shape[1])] = value
    return made


def _packed(tensors: Sequence[Tensor], rows: int) -> Tensor:
    """All columns of so many rows as bytes, `[rows, bytes]`."""
    parts = [value.reshape(rows, math.prod(value.shape[1:])).contiguous().view(torch.uint8) for value in tensors]
    return torch.cat(parts, dim=1)


def _unpacked(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """What `_packed` has made of tensors of these dtypes and shapes, whatever their number of rows."""
    widths = [math.prod(value.shape[1:]) * value.element_size() for value in like]
    return [
        part.clone(memory_format=torch.contiguous_format).view(value.dtype).reshape(len(packed), *value.shape[1:])
        for part, value in zip(packed.split(widths, dim=1), like, strict=True)
    ]


def _sent(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Rows that arrive, by sender, where this process's go to the others in their order, so many each."""
    arrived = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent)
    return arrived


def _sent_objects(rows: list[Any], sent: list[int], like: Tensor) -> list[Any]:
    """The same of rows that are no tensors, through tensors on the device of `like`."""
    ends = torch.tensor([0, *sent]).cumsum(0).tolist()
    parts = [pickle.dumps(rows[begin:end]) for begin, end in pairwise(ends)]
    lengths = torch.tensor([len(part) for part in parts], device=like.device)
    ones = [1] * len(sent)
    arriving = _sent(lengths, ones, ones).tolist()
    data = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).to(like.device)
    arrived = _sent(data, lengths.tolist(), arriving).cpu().split(arriving)
    return [row for part in arrived for row in pickle.loads(part.numpy().tobytes())]
