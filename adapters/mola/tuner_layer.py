"""What every tuner layer of MoLA is for peft and for the model around it."""

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


class TunerLayer(BaseTunerLayer):
    """A `BaseTunerLayer` with what peft's helpers ask of one; it may have no base layer."""

    cast_input_dtype_enabled: bool = True

    @property
    def weight(self) -> Tensor:
        """The base layer's."""
        return self._of_base_layer("weight")

    @property
    def bias(self) -> Tensor:
        """The base layer's."""
        return self._of_base_layer("bias")

    def _of_base_layer(self, name: str) -> Any:
        base: Any = self.get_base_layer()
        if base is self:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(base, name)


class WrappingLayer(nn.Module, TunerLayer):
    """A tuner layer in the place of a layer whose public attributes the model goes on reading."""

    base_layer: nn.Module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "base_layer":  # hooks and such are each module's own
                raise
            return getattr(self.base_layer, name)

    def __repr__(self) -> str:
        return "mola." + super().__repr__()
