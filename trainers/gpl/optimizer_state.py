"""An optimizer of ours in a checkpoint: its moments as named tensors."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def packed(optimizer: Optimizer, name: str) -> dict[str, Tensor]:
    """The state of every parameter, by `NAME.NUMBER.KEY`."""
    state = optimizer.state_dict()["state"]
    return {f"{name}.{number}.{key}": value for number, parts in state.items() for key, value in parts.items()}


def unpack(optimizer: Optimizer, name: str, saved: dict[str, Any]) -> None:
    """Take back what `packed` gave, among other values."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in saved.items():
        if key.startswith(f"{name}."):
            number, _, part = key.removeprefix(f"{name}.").partition(".")
            state.setdefault(int(number), {})[part] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
