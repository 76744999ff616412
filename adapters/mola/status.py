"""What peft tells of a model with MoLA adapters."""

from collections.abc import Callable
from typing import Any

from hf_ext.adapters.mola.routing import ROUTING_ATTRIBUTE


def adapted_layers_only(original: Callable[..., Any]) -> Callable[..., Any]:
    """`get_layer_status` without the module that routes, which adapts no layer: peft takes it for one."""

    def get_layer_status(model: Any) -> list[Any]:
        return [status for status in original(model) if status.name.rpartition(".")[2] != ROUTING_ATTRIBUTE]

    return get_layer_status
