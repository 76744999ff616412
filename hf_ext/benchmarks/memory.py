"""The most memory that this process and those that it started hold together."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

#: calls a function with its arguments, here or in another process
Run = Callable[..., Any]


@dataclass
class Peak:
    """Bytes held at first, and at most."""

    before: int
    most: int


@contextmanager
def peak_memory(every: float = 0.2) -> Iterator[Peak]:
    """While this lasts, look every so many seconds; what it gives is complete afterwards."""
    done, peak = threading.Event(), Peak(*[resident(psutil.Process(os.getpid()))] * 2)

    def watch() -> None:
        while not done.wait(every):
            peak.most = max(peak.most, resident(psutil.Process(os.getpid())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def resident(process: psutil.Process) -> int:
    """Bytes of a process and its children that are theirs alone, and of what they share each one's part."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def in_own_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """So that memory does not depend on what ran before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()
