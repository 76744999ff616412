"""`generate` of a base model with MoLA: one routing, made from the whole prompt, for all forwards it consists of.

Only `generate` knows where the prompt ends: a forward may hold a chunk of it, or a guess of what follows. So the base
model gets one of its own, which is there until the adapter is unloaded.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hf_ext.adapters.mola.routing import RoutingModule


class _Routed:
    """A method of a model that stands before the class's own."""

    name: str

    def __init__(self, model: Any, routing: "RoutingModule") -> None:
        self.model = model
        self.routing = routing

    @property
    def __wrapped__(self) -> Any:
        return getattr(type(self.model), self.name).__get__(self.model)


class _Generate(_Routed):
    name = "generate"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.routing.generating(self._prompts(args, kwargs)):
            return self.__wrapped__(*args, **kwargs)

    def _prompts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments as forward would get them."""
        names = inspect.signature(self.__wrapped__).parameters
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        main = getattr(self.model, "main_input_name", "input_ids")
        if self.model.config.is_encoder_decoder:
            main = getattr(self.model.get_encoder(), "main_input_name", main)
        if (found := inputs.pop("inputs", None)) is not None:
            inputs[main] = found
        ids = inputs.get("input_ids")
        if isinstance(ids, Tensor) and inputs.get("attention_mask") is None:
            inputs["attention_mask"] = self._padding_mask(ids, inputs)
        return inputs

    def _padding_mask(self, ids: Tensor, inputs: dict[str, Any]) -> Tensor | None:
        """As transformers makes it for prompts that come without: by the padding token, if that ends no text."""
        pad, eos = (self._option(name, inputs) for name in ("pad_token_id", "eos_token_id"))
        ends = torch.as_tensor([] if eos is None else eos).reshape(-1).tolist()
        return None if pad is None or int(pad) in ends else ids.ne(int(pad)).long()

    def _option(self, name: str, inputs: dict[str, Any]) -> Any:
        configs = (inputs.get("generation_config"), self.model.generation_config)
        found = (inputs.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in found if value is not None), None)


class _ContinuousBatching(_Routed):
    name = "init_continuous_batching"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """It joins sequences to one row: only experts that all of them share can be mixed.

        Raises:
            ValueError: the adapter's router, or `set_task` with an id per sample, would route sequences apart.
        """
        self.routing.check_one_routing()
        return self.__wrapped__(*args, **kwargs)


def route_generation(model: Any, routing: "RoutingModule") -> None:
    """Put a model's `generate` under the routing, if it has one."""
    for kind in (_Generate, _ContinuousBatching):
        if hasattr(type(model), kind.name) and kind.name not in vars(model):
            setattr(model, kind.name, kind(model, routing))


def unroute_generation(model: Any) -> None:
    """Give the model its class's `generate` back."""
    for kind in (_Generate, _ContinuousBatching):
        if isinstance(vars(model).get(kind.name), kind):
            delattr(model, kind.name)
