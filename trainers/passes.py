"""Forward passes apart from training that leave no trace in it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


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


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module's mode is put back afterwards."""
    modes = {module: module.training for module in model.modules()}  # parts of one in training may be in evaluation
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
