"""How routing weights reach the layers: a pre-forward hook on the base model fills one state that all layers read."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hf_ext.adapters.mola.config import MoLAConfig
from hf_ext.adapters.mola.router import build_router, in_dtype_of, mean_embedding
from hf_ext.adapters.mola.safety import Expect
from hf_ext.adapters.mola.tuner_layer import TunerLayer
from hf_ext.functional.mola import router_routing, task_routing

TaskIds = int | Sequence[int] | Tensor
#: name under which a base model holds its `RoutingModule`; without the prefix "mola_", by which peft knows parameters
ROUTING_ATTRIBUTE = "adapter_routing"
_MAIN_INPUTS = ("pixel_values", "input_ids", "inputs_embeds", "input_values", "input_features")


class Routing:
    """Routing of the current forward, shared by all MoLA layers of a base model.

    Attributes:
        weights: adapter name -> routing weights `[B, E]` (or `[1, E]`), by which the adapted layers mix their experts.
        heads: adapter name -> one-hot `[B, num_tasks]`, by which per-task heads are picked.
        logits: adapter name -> the router's `[B, E]` logits.
        projected: adapter name -> `[B, twd_dim]`, features of the TwD loss (training only).
        default_task_ids: ids of calls that bring none (`set_task`).
    """

    def __init__(self) -> None:
        self.default_task_ids: TaskIds | None = None
        self.clear()

    def clear(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.heads: dict[str, Tensor] = {}
        self.logits: dict[str, Tensor] = {}
        self.projected: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # copies of a model start without the last forward's tensors, which belong to its graph
        return {"default_task_ids": self.default_task_ids}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.default_task_ids = state["default_task_ids"]
        self.clear()

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which always runs with the routing at the time of this call: gradient checkpointing runs a block
        again in backward, possibly after another forward."""
        weights, heads = self.weights, self.heads

        def bound(*args: Any, **kwargs: Any) -> Any:
            later = self.weights, self.heads
            self.weights, self.heads = weights, heads
            try:
                return function(*args, **kwargs)
            finally:
                self.weights, self.heads = later

        return bound


def rows_for(weights: Tensor, batch: int) -> Tensor:
    """Routing `[B, E]` for a layer whose input has `batch` rows: `[batch, E]`, or `[1, E]` as it is.

    A multiple of B means that every sample became several neighbouring rows (windows of Swin, beams of `generate`).
    """
    rows = weights.shape[0]
    if rows in (1, batch):
        return weights
    if batch % rows:
        raise ValueError(
            f"mola_task_ids: found routing for {rows} samples in a layer that got {batch} rows, allowed is one row "
            "per sample or a multiple (inputs that mix samples, such as packed sequences, cannot be routed)"
        )
    return weights.repeat_interleave(batch // rows, dim=0)


class RoutingModule(nn.Module, TunerLayer):
    """Routers and routing state of a base model, attached to it as `adapter_routing`.

    It is a tuner layer of its own, so that saving, loading, `set_adapter`, `delete_adapter` and dtype casts treat the
    routers like any other parameters of an adapter.
    """

    adapter_layer_names = ("mola_router", "mola_projection")

    def __init__(self, base_model: Any, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.mola_router = nn.ModuleDict()
        self.mola_projection = nn.ModuleDict()
        self.configs: dict[str, MoLAConfig] = {}
        self._parameter_names = tuple(inspect.signature(base_model.forward).parameters)
        self._main_inputs = (getattr(base_model, "main_input_name", "pixel_values"), *_MAIN_INPUTS)
        # plain lists: what is in them belongs to the base model
        self._base_parameter = [next(base_model.parameters())]
        self._frozen_norms: list[nn.Module] = []
        self._checkpointed = [module for module in base_model.modules() if hasattr(module, "gradient_checkpointing")]
        self._hooks = [base_model.register_forward_pre_hook(self._route, with_kwargs=True)]
        if getattr(getattr(base_model, "config", None), "is_encoder_decoder", False):
            # generate calls the encoder by itself, before the first forward of the whole
            self._hooks.append(base_model.register_forward_hook(self._leave, always_call=True))
            self._hooks.append(base_model.get_encoder().register_forward_pre_hook(self._route_alone, with_kwargs=True))
        self._in_forward = False

    def forward(self, x: Any) -> Any:
        """The identity: in a base model that is an `nn.Sequential`, this module is its last member."""
        return x

    def add_adapter(self, adapter_name: str, config: MoLAConfig, base_model: nn.Module, expect: Expect) -> None:
        """Add an adapter's router, if it has one, and collect the BatchNorms of the base model that stay frozen."""
        self.configs[adapter_name] = config
        if config.routing == "router":
            # only the module knows its tensors; E, which it was told, has been checked by the layers
            router = build_router(config.router, base_model, config.num_experts)
            for name, value in router.state_dict().items():
                expect(f"mola_router.{name}", value.shape)
            self.mola_router[adapter_name] = router
            if config.uses_twd:
                expect("mola_projection.weight", (config.twd_dim, config.num_experts))
                expect("mola_projection.bias", (config.twd_dim,))
                self.mola_projection[adapter_name] = nn.Linear(config.num_experts, config.twd_dim)
            self._move_adapter_to_device_of_base_layer(adapter_name)
        trained = any(other.train_backbone for other in self.configs.values())
        own = {id(module) for module in self.modules()}
        self._frozen_norms = [
            module
            for module in base_model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not trained and id(module) not in own
        ]
        self.train(base_model.training)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.configs.pop(adapter_name, None)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        for modules in (self.mola_router, self.mola_projection):
            if adapter_name in modules and not any(value.is_meta for value in modules[adapter_name].parameters()):
                modules[adapter_name].to(device or self._base_parameter[0].device)

    def remove(self) -> None:
        """Take the hooks off the base model again."""
        for hook in self._hooks:
            hook.remove()

    def unmerge(self) -> None:
        """Nothing is ever merged here."""

    def train(self, mode: bool = True) -> "RoutingModule":
        # attached last, so this runs after the base model's own modules have been switched: the running statistics
        # of a frozen base model belong to it and must not drift
        super().train(mode)
        for norm in self._frozen_norms:
            norm.training = False
        return self

    # ---------------------------------------------------------------------------------------------- the hooks
    def _leave(self, *_: Any) -> None:
        self._in_forward = False

    def _route_alone(self, encoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if self._in_forward:
            return None
        routed = self._route(encoder, args, kwargs)
        self._in_forward = False
        return routed

    def _route(self, base_model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._in_forward = True
        given: TaskIds | None = kwargs.pop("mola_task_ids", None)
        if self.disable_adapters:
            return args, kwargs
        inputs = {**dict(zip(self._parameter_names, args, strict=False)), **kwargs}
        main_input = self._main_input(inputs)
        task_ids = self._checked_ids(given, main_input)
        if torch.is_grad_enabled():
            self._bind_checkpoints()

        routing = self.routing
        previous, projected = routing.weights, {}
        routing.weights, routing.heads, routing.logits = {}, {}, {}
        for name, config in self._active_configs():
            if task_ids is None and config.needs_task_ids:
                raise ValueError(
                    f"mola_task_ids: found None, allowed is one task id in [0, {config.task_id_bound}) per sample; "
                    "pass mola_task_ids=..., or call set_task(...) where a call cannot (generate, pipelines)"
                )
            if task_ids is not None and config.routing == "task":
                routing.weights[name] = task_routing(task_ids, num_experts=config.num_experts)
            elif _is_decoding(inputs) and name in previous:
                routing.weights[name] = previous[name]  # one routing per sequence, made from the prompt
            else:
                routing.logits[name] = self._router_logits(name, base_model, inputs, main_input)
                if self.training and torch.is_grad_enabled() and name in self.mola_projection:
                    projected[name] = self._project(name)
                routing.weights[name] = router_routing(routing.logits[name], kind=config.router_kind)
            if task_ids is not None and config.task_heads:
                routing.heads[name] = task_routing(task_ids, num_experts=config.num_tasks or config.num_experts)
        if torch.is_grad_enabled():  # a look at the outputs between forward and loss must not take the TwD's features
            routing.projected = projected
        return args, kwargs

    def _active_configs(self) -> list[tuple[str, MoLAConfig]]:
        return [(name, self.configs[name]) for name in self.active_adapters if name in self.configs]

    def _main_input(self, inputs: dict[str, Any]) -> Tensor:
        for name in self._main_inputs:
            if isinstance(value := inputs.get(name), Tensor):
                return value
        for value in inputs.values():
            if isinstance(value, Tensor):
                return value
        raise ValueError(f"inputs: found no tensor among {sorted(inputs)}, allowed is a model input with a batch axis")

    def _checked_ids(self, task_ids: TaskIds | None, main_input: Tensor) -> Tensor | None:
        """Ids as int64 `[B]` or `[1]` on the input's device; `set_task`'s ids may be repeated (beams)."""
        from_default = task_ids is None
        if from_default:
            task_ids = self.routing.default_task_ids
            if task_ids is None:
                return None
        ids = _as_ids(task_ids)
        is_scalar = ids.ndim == 0
        ids = ids.reshape(1) if is_scalar else ids
        batch = main_input.shape[0]
        fits = is_scalar or ids.shape[0] == batch or (from_default and ids.shape[0] and batch % ids.shape[0] == 0)
        if ids.ndim != 1 or not fits:
            raise ValueError(
                f"mola_task_ids: found ids of shape {tuple(ids.shape)} for {batch} samples, allowed is one per sample"
            )
        self._check_range(ids)
        return ids.to(main_input.device, non_blocking=True)

    def _check_range(self, ids: Tensor) -> None:
        if ids.device.type != "cpu" or torch.compiler.is_compiling():
            return  # a look at them would stall the device; task_routing marks wrong ones with NaN
        bounds = [config.task_id_bound for _, config in self._active_configs() if config.needs_task_ids]
        bound = min(bounds, default=None)
        if bound is not None and bool(((ids < 0) | (ids >= bound)).any()):
            raise ValueError(f"mola_task_ids: found {ids.unique().tolist()}, allowed are 0 to {bound - 1}")

    def _router_logits(self, name: str, base_model: nn.Module, inputs: dict[str, Any], main_input: Tensor) -> Tensor:
        router = self.mola_router[name]
        embedding = getattr(router, "uses_embeddings", False)
        # the router is small and its softmax delicate: float32 whatever the autocast
        with torch.autocast(main_input.device.type, enabled=False):
            value = mean_embedding(base_model, inputs) if embedding else main_input
            logits = router(in_dtype_of(router, value))
        expected = (main_input.shape[0], self.configs[name].num_experts)
        if tuple(logits.shape) != expected:
            raise ValueError(f"router: found logits of shape {tuple(logits.shape)}, allowed is [B, E] = {expected}")
        return logits

    def _project(self, name: str) -> Tensor:
        logits = self.routing.logits[name]
        with torch.autocast(logits.device.type, enabled=False):
            projected = self.mola_projection[name](logits.float())
        # keeps the projection in the graph when nobody adds the TwD loss: DDP demands a gradient for every parameter
        self.routing.logits[name] = logits + 0.0 * projected.sum()
        return projected

    def _bind_checkpoints(self) -> None:
        for module in self._checkpointed:
            checkpoint = getattr(module, "_gradient_checkpointing_func", None)
            if not module.gradient_checkpointing or checkpoint is None:
                continue
            if not isinstance(checkpoint, _BoundCheckpoint):
                checkpoint = _BoundCheckpoint(checkpoint, self.routing)
                setattr(module, "_gradient_checkpointing_func", checkpoint)  # noqa: B010 (mypy knows no such name)
            if checkpoint.reentrant and any(config.routing == "router" for _, config in self._active_configs()):
                raise ValueError(
                    "use_reentrant: found True, allowed is False with routing='router', whose graph all blocks share "
                    "(gradient_checkpointing_kwargs={'use_reentrant': False})"
                )


class _BoundCheckpoint:
    """A checkpoint function whose recomputation sees the routing of its forward."""

    def __init__(self, checkpoint: Callable[..., Any], routing: Routing) -> None:
        self.checkpoint = checkpoint
        self.routing = routing
        self.reentrant = getattr(checkpoint, "keywords", {}).get("use_reentrant", False)

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(self.routing.bind(function), *args, **kwargs)


def _is_decoding(inputs: dict[str, Any]) -> bool:
    if inputs.get("encoder_outputs") is not None:
        return True
    cache = inputs.get("cache", inputs.get("past_key_values"))  # its name since transformers 5.24, and before
    length = getattr(cache, "get_seq_length", None)
    return length is not None and int(length()) > 0


def _as_ids(task_ids: Any) -> Tensor:
    try:
        ids = task_ids if isinstance(task_ids, Tensor) else torch.as_tensor(task_ids)
    except (TypeError, ValueError, RuntimeError) as error:  # text, None, lists of different lengths
        raise ValueError(f"mola_task_ids: found {task_ids!r}, allowed are integers") from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"mola_task_ids: found {ids.dtype}, allowed are integers")
    return ids


# ------------------------------------------------------------------------------------------------ set_task
class TaskSetting(AbstractContextManager["TaskSetting"]):
    """What `set_task` returns: the setting holds at once, and until the end of a `with` statement if used in one."""

    def __init__(self, routing: Routing, task_ids: TaskIds | None) -> None:
        self._routing = routing
        self._before = routing.default_task_ids
        routing.default_task_ids = task_ids

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._routing.default_task_ids = self._before


def find_routing(model: nn.Module) -> RoutingModule | None:
    """The routing of the MoLA-adapted model in `model` (a PeftModel, a DDP wrapper, a compiled model, ...), if any."""
    return next((module for module in model.modules() if isinstance(module, RoutingModule)), None)


def set_task(model: nn.Module, task_ids: TaskIds | None) -> TaskSetting:
    """Give the ids of calls that cannot pass `mola_task_ids`, such as `generate` and pipelines.

    Args:
        model: any model with a MoLA adapter.
        task_ids: one id for all samples, or one per sample of the coming batches (repeated for beams); `None` takes
            the setting back.

    Returns:
        A context manager. The setting holds at once; a `with` statement undoes it at its end.

    Raises:
        ValueError: the model has no MoLA adapter, or an id is no integer or out of range.
    """
    module = find_routing(model)
    if module is None:
        raise ValueError(f"model: found a {type(model).__name__} without MoLA adapter, allowed is one with")
    if task_ids is not None:
        module._check_range(_as_ids(task_ids).reshape(-1).cpu())
    return TaskSetting(module.routing, task_ids)
