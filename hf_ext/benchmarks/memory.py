"""The most memory that this process and those that it started hold together."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


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
