"""Two passes over the same micro-batches: the same random numbers in both, gradients averaged by hand."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """What is drawn inside is drawn again afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def average_over_processes(tensors: list[Tensor]) -> None:
    """In place, over processes; one message per dtype."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # in one order in all processes
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))
