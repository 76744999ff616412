"""Messages that the processes of an update send each other besides DDP's gradients: counted where torch sends them."""

import json
import math
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from hf_ext.benchmarks.engine import Step
from hf_ext.benchmarks.tables import Table

PROCESSES, QUICK_PROCESSES = (2, 4, 8), (2,)


class Traffic(NamedTuple):
    """Of one process in one update: how many collective calls it made, and the bytes that came from others."""

    calls: int
    bytes: int


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _gathered(output: Any, own: Tensor, *_: Any, **__: Any) -> int:
    return (dist.get_world_size() - 1) * _bytes(own)


def _reduced(tensor: Tensor, *_: Any, **__: Any) -> int:
    """As a ring does it: every part comes by once to be added, and once when it is complete."""
    processes = dist.get_world_size()
    return 2 * (processes - 1) * math.ceil(_bytes(tensor) / processes)


def _broadcast(tensor: Tensor, src: int | None = None, *_: Any, **__: Any) -> int:
    return 0 if dist.get_rank() == (src or 0) else _bytes(tensor)


def _exchanged(output: Tensor, _: Tensor, received: Sequence[int] | None = None, *__: Any, **___: Any) -> int:
    sizes, rank = received or [len(output) // dist.get_world_size()] * dist.get_world_size(), dist.get_rank()
    return _bytes(output) // max(len(output), 1) * (sum(sizes) - sizes[rank])


#: bytes that a call brings to this process from others, by the name of torch's function
_RECEIVED: dict[str, Callable[..., int]] = {
    "all_gather": _gathered,
    "all_gather_into_tensor": _gathered,
    "all_gather_single": _gathered,
    "all_reduce": _reduced,
    "broadcast": _broadcast,
    "all_to_all_single": _exchanged,
}


@contextmanager
def counted() -> Iterator[list[Traffic]]:
    """While this lasts, calls of `torch.distributed` are noted; what DDP sends of gradients is none of them."""
    found: list[Traffic] = []
    within: list[str] = []  # one of torch's functions may call another

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if not within:
                found.append(Traffic(1, _RECEIVED[name](*args, **kwargs)))
            within.append(name)
            try:
                return call(*args, **kwargs)
            finally:
                within.pop()

        return noted

    with ExitStack() as stack:
        for name in _RECEIVED:
            for place in (dist, dist.distributed_c10d):
                if hasattr(place, name):
                    stack.enter_context(mock.patch.object(place, name, noting(name, getattr(place, name))))
        yield found


def measure_traffic(make: Callable[[torch.device, bool], Step], processes: int, quick: bool) -> list[Traffic]:
    """Of every process, in the second of two updates.

    Args:
        make: a function of a module, which builds an update on a device, of this process's rows.
        processes: how many.
        quick: handed to `make`.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        multiprocessing.set_forkserver_preload([make.__module__])  # imported once, not by every process
        arguments = (make, processes, port, folder, quick)
        mp.start_processes(_update, arguments, nprocs=processes, start_method="forkserver")
        return [Traffic(*json.loads((Path(folder) / str(rank)).read_text())) for rank in range(processes)]


def _update(
    rank: int,
    make: Callable[[torch.device, bool], Step],
    processes: int,
    port: int,
    folder: str,
    quick: bool,
) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    words = {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    os.environ.update(words | {name: str(number) for name, number in numbers.items()})
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # rows of its own; DDP takes the weights of the first process
    step = make(torch.device("cpu"), quick)
    step()  # the first one looks at the model as well
    with counted() as found:
        step()
    total = Traffic(sum(each.calls for each in found), sum(each.bytes for each in found))
    (Path(folder) / str(rank)).write_text(json.dumps(total))
    dist.destroy_process_group()


def traffic_table(
    name: str, title: str, setting: str, make: Callable[[torch.device, bool], Step], rows: int, quick: bool
) -> Table:
    """By the number of processes, which bring as many rows each.

    Args:
        name, title, setting: of the table.
        make: see `measure_traffic`.
        rows: of each process's micro-batch.
        quick: two processes alone.
    """
    numbers = QUICK_PROCESSES if quick else PROCESSES
    found = [measure_traffic(make, number, quick) for number in numbers]
    most = [max(one.bytes for one in of_all) for of_all in found]
    lines = [
        [
            str(number),
            f"{number * rows:,}",
            str(max(one.calls for one in of_all)),
            f"{largest / 1000:,.1f}",
            f"{sum(one.bytes for one in of_all) / number / 1000:,.1f}",
            f"{largest / (number * rows):,.0f}",
        ]
        for number, of_all, largest in zip(numbers, found, most, strict=True)
    ]
    return Table(
        name=name,
        title=title,
        setting=(
            f"{setting}; {rows} rows in each process, CPU, gloo. What an update's processes send each other but DDP's "
            "gradients, counted at torch's calls: a gathered tensor comes from all others, a sum as in a ring, a kept "
            "row from its owner. The last column is flat where traffic grows as the batch does"
        ),
        header=[
            "processes",
            "rows of all",
            "calls",
            "kB received at most",
            "kB received, mean",
            "bytes at most / row",
        ],
        rows=lines,
        values={"processes": list(numbers), "received": [[one._asdict() for one in of_all] for of_all in found]},
        quick=quick,
    )
