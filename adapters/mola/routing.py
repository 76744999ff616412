"""How routing weights reach the layers: hooks on the base model, and on the parts of it that take inputs, fill the
state that all layers read."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from hf_ext.adapters.mola.caches import cache_in, encoder_states, keep, keep_with_encoder_outputs, kept_routing
from hf_ext.adapters.mola.config import MoLAConfig
from hf_ext.adapters.mola.generation import route_generation, unroute_generation
from hf_ext.adapters.mola.router import build_router, mean_embedding, run
from hf_ext.adapters.mola.safety import Expect
from hf_ext.adapters.mola.state import Frame, Routing, TaskIds, as_ids, ids_missing, no_router_input
from hf_ext.adapters.mola.tuner_layer import TunerLayer
from hf_ext.functional.mola import router_routing, task_routing

#: name under which a base model holds its `RoutingModule`; without the prefix "mola_", by which peft knows parameters
ROUTING_ATTRIBUTE = "adapter_routing"
_MAIN_INPUTS = ("pixel_values", "input_ids", "inputs_embeds", "input_values", "input_features")


class _Entry:
    """The hooks of a module through which calls reach adapted layers."""

    def __init__(self, owner: "RoutingModule", module: nn.Module) -> None:
        self.owner = owner
        self.parameter_names = _parameter_names(module)
        self.handles = (
            module.register_forward_pre_hook(self.enter, with_kwargs=True),
            module.register_forward_hook(self.leave, always_call=True),
        )

    def enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given: TaskIds | None = kwargs.pop("mola_task_ids", None)
        if not self.owner.disable_adapters:
            caller = None if torch.compiler.is_compiling() else sys._getframe(1)
            self.owner.enter(module, {**dict(zip(self.parameter_names, args, strict=False)), **kwargs}, given, caller)
        return args, kwargs

    def leave(self, module: nn.Module, _: Any, outputs: Any) -> None:
        self.owner.leave(module, outputs)


def _parameter_names(module: nn.Module) -> tuple[str, ...]:
    compiled = getattr(module, "_orig_mod", module)  # whose own signature says nothing
    return tuple(inspect.signature(compiled.forward).parameters)


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
        self._main_inputs = (getattr(base_model, "main_input_name", "pixel_values"), *_MAIN_INPUTS)
        # plain lists: what is in them belongs to the base model
        self._base = [base_model]
        self._frozen_norms: list[nn.Module] = []
        self._checkpointed = [module for module in base_model.modules() if hasattr(module, "gradient_checkpointing")]
        self._entered = [base_model]
        self._entries = [_Entry(self, base_model)]
        two = getattr(getattr(base_model, "config", None), "is_encoder_decoder", False)
        self._encoder_and_decoder = [base_model.get_encoder(), base_model.get_decoder()] if two else [None, None]
        route_generation(base_model, self)

    @property
    def configs(self) -> dict[str, MoLAConfig]:
        """Adapter name -> its configuration."""
        return self.routing.configs

    def forward(self, x: Any) -> Any:
        """The identity: in a base model that is an `nn.Sequential`, this module is its last member."""
        return x

    def add_adapter(self, adapter_name: str, config: MoLAConfig, base_model: nn.Module, expect: Expect) -> None:
        """Add an adapter's router, if it has one, and collect the BatchNorms of the base model that stay frozen."""
        self.configs[adapter_name] = config
        if config.routing == "router":
            # only the module knows its tensors; E, which it was told, has been checked by the layers
            router = build_router(config.router, base_model, config.num_experts, config.router_norm)
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
        self._find_entries(base_model)
        self.train(base_model.training)

    def _find_entries(self, base_model: nn.Module) -> None:
        """Hook the parts that hold adapted layers and take inputs of a model: their calls need not come from above."""
        for part in base_model.modules():
            if any(part is other for other in self._entered) or not (
                hasattr(part, "main_input_name") or set(_parameter_names(part)) & set(_MAIN_INPUTS)
            ):
                continue
            if any(getattr(layer, "routing", None) is self.routing for layer in part.modules()):
                self._entered.append(part)
                self._entries.append(_Entry(self, part))

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.configs.pop(adapter_name, None)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        for modules in (self.mola_router, self.mola_projection):
            if adapter_name in modules and not any(value.is_meta for value in modules[adapter_name].parameters()):
                modules[adapter_name].to(device or next(self._base[0].parameters()).device)

    def remove(self) -> None:
        """Take the hooks off the base model again."""
        for entry in self._entries:
            for handle in entry.handles:
                handle.remove()
        unroute_generation(self._base[0])

    def unmerge(self) -> None:
        """Nothing is ever merged here."""

    def train(self, mode: bool = True) -> "RoutingModule":
        # attached last, so this runs after the base model's own modules have been switched: the running statistics
        # of a frozen base model belong to it and must not drift
        super().train(mode)
        for norm in self._frozen_norms:
            norm.training = False
        return self

    # ---------------------------------------------------------------------------------------------- calls
    def enter(
        self, module: nn.Module, inputs: dict[str, Any], given: TaskIds | None, caller: FrameType | None
    ) -> None:
        """A call of the base model, or of a part of it, starts."""
        now = self.routing.now
        outer = self.routing.current()
        whole = module is self._base[0]
        if whole and outer is not None and not outer.is_prompt:
            outer = None  # left by a compiled call that was interrupted: no call of the whole is part of another
        if outer is not None and outer.weights and not whole:
            part = self._part(module, inputs, outer)
            part.caller = caller
            now.frame = part
            return
        if torch.is_grad_enabled():
            self._bind_checkpoints()
        main_input = self._main_input(inputs)
        if main_input is None:
            raise ValueError(
                f"inputs: found no tensor among {sorted(inputs)}, allowed is a model input with a batch axis"
            )
        if outer is not None and outer.weights and given is None:
            frame = self._of_prompts(module, inputs, len(main_input), outer)
        else:
            frame = Frame(module, inputs, outer)
            self._route(frame, inputs, main_input, given)
        frame.batch = len(main_input)
        if (kept := self._of_routers(frame)) and (cache := cache_in(inputs)) is not None:
            keep(cache, kept)
        frame.caller = caller
        self.routing.begin(frame)

    def leave(self, module: nn.Module, outputs: Any) -> None:
        """A call is over, or failed; what its sequences may be continued from keeps their routing."""
        frame = self.routing.now.frame
        if frame is None or frame.module is not module:
            return
        frame.caller = None  # it holds all that the call had at hand
        self.routing.now.frame = frame.parent
        if outputs is None or not (kept := self._of_routers(frame)):
            return
        if module is self._encoder_and_decoder[0]:
            keep_with_encoder_outputs(outputs, kept)
        elif (cache := cache_in(outputs)) is not None:
            keep(cache, kept)

    @contextmanager
    def generating(self, inputs: dict[str, Any]) -> Iterator[None]:
        """One `generate`, routed once, by its prompts, whatever its forwards bring."""
        now = self.routing.now
        before, now.frame = now.frame, None
        try:
            frame = Frame(None, inputs)
            prompts = self._main_input(inputs, named=True)
            prompts = encoder_states(inputs) if prompts is None else prompts
            if prompts is not None and not self.disable_adapters:
                with torch.no_grad():
                    self._route(frame, inputs, prompts, None)
            now.frame = frame
            yield
        finally:
            now.frame = before

    def check_one_routing(self) -> None:
        """Refuse calls that join sequences to one row, unless all of them share one routing.

        Raises:
            ValueError: a router is active, or `set_task` gave no id, or one per sample.
        """
        for _, config in self._active_configs():
            if config.routing == "router":
                raise ValueError(
                    "routing: found 'router' with continuous batching, whose sequences share a row, allowed are "
                    "generate without it, or routing='task' with set_task(id)"
                )
            if self.routing.default_task_ids is None:
                raise ValueError(ids_missing(config))
            self.routing.default_ids(1)

    def _part(self, part: nn.Module, inputs: dict[str, Any], outer: Frame) -> Frame:
        """A call within another: every sample has one row again, or the k rows of a tensor `[B, k, ...]`."""
        main = self._main_input(inputs)
        rows = outer.rows if main is None else main.shape[0]
        if outer.rows not in (1, rows) and not (main is not None and outer.flattens_to(main.shape)):
            raise ValueError(
                f"mola_task_ids: found a call of {type(part).__name__} with {rows} rows for {outer.rows} samples, "
                "allowed is one row per sample; for others (several images in a sample, say) one id for all, "
                "set_task(id), one sample a call, or target_modules without that part of the model"
            )
        return outer.call(part, inputs, rows)

    def _of_prompts(self, module: nn.Module, inputs: dict[str, Any], batch: int, prompts: Frame) -> Frame:
        """A forward of `generate`, which may hold several rows per prompt (beams)."""
        if batch % prompts.rows:
            raise ValueError(
                f"generate: found a forward with {batch} rows for {prompts.rows} prompts, allowed is a multiple "
                "(generation that drops or adds sequences: one prompt a call)"
            )
        self.routing.now.logits = {}
        return prompts.call(module, inputs, batch)

    def _main_input(self, inputs: dict[str, Any], *, named: bool = False) -> Tensor | None:
        names = self._main_inputs if named else (*self._main_inputs, *inputs)
        return next((inputs[name] for name in names if isinstance(inputs.get(name), Tensor)), None)

    # ---------------------------------------------------------------------------------------------- routing
    def _active_configs(self) -> list[tuple[str, MoLAConfig]]:
        return [(name, self.configs[name]) for name in self.active_adapters if name in self.configs]

    def _of_routers(self, frame: Frame) -> dict[str, Tensor]:
        """Routers' weights of a call, one row per sequence."""
        routed = [name for name in frame.weights if name in self.configs and self.configs[name].routing == "router"]
        return {name: frame.weights[name].expand(frame.batch or -1, -1) for name in routed}

    def _route(self, frame: Frame, inputs: dict[str, Any], main_input: Tensor, given: TaskIds | None) -> None:
        """Fill a frame with the routing of all active adapters."""
        now = self.routing.now
        task_ids = self._checked_ids(given, main_input)
        now.logits, projected = {}, {}
        for name, config in self._active_configs():
            if task_ids is None and config.needs_task_ids:
                raise ValueError(ids_missing(config))
            if task_ids is not None and config.routing == "task":
                frame.weights[name] = task_routing(task_ids, num_experts=config.num_experts)
            else:
                kept = self._kept_weights(name, frame, inputs, main_input)
                if kept is None:
                    now.logits[name] = self._router_logits(name, frame.module, inputs, main_input)
                    if self.training and torch.is_grad_enabled() and name in self.mola_projection:
                        projected[name] = self._project(name)
                    kept = router_routing(now.logits[name], kind=config.router_kind)
                frame.weights[name] = kept
            if task_ids is not None and config.task_heads:
                frame.heads[name] = task_routing(task_ids, num_experts=config.num_tasks or config.num_experts)
        if torch.is_grad_enabled():  # a look at the outputs between forward and loss must not take the TwD's features
            now.projected = projected

    def _kept_weights(self, name: str, frame: Frame, inputs: dict[str, Any], main_input: Tensor) -> Tensor | None:
        """A router's weights of the prompts that `generate` began with, or of the sequences that a call continues."""
        if frame.parent is not None and name in frame.parent.weights:  # of a call with ids of its own
            return self._of_prompts(self._base[0], inputs, len(main_input), frame.parent).weights[name]
        if frame.module is not None and frame.module is self._encoder_and_decoder[1]:
            inputs = {**inputs, "encoder_outputs": inputs.get("encoder_hidden_states", ())}
        kept = kept_routing(inputs, name)
        if kept is not None and len(kept) != len(main_input):
            raise ValueError(
                f"cache: found one of {len(kept)} sequences in a call with {len(main_input)} rows, allowed is the "
                "cache of the sequences that are continued"
            )
        return kept

    def _checked_ids(self, given: TaskIds | None, main_input: Tensor) -> Tensor | None:
        """Ids as int64 `[B]` or `[1]` on the input's device."""
        needed = any(config.needs_task_ids for _, config in self._active_configs())
        if given is None and (self.routing.default_task_ids is None or not needed):
            return None
        batch = main_input.shape[0]
        if given is None:
            ids = self.routing.default_ids(batch)
        else:
            ids = as_ids(given)
            if ids.ndim != 0 and ids.shape != (batch,):
                raise ValueError(
                    f"mola_task_ids: found ids of shape {tuple(ids.shape)} for {batch} samples, allowed is one per "
                    "sample"
                )
            ids = ids.reshape(-1)
        self._check_range(ids)
        return ids.to(main_input.device, non_blocking=True)

    def _check_range(self, ids: Tensor) -> None:
        if ids.device.type != "cpu" or torch.compiler.is_compiling():
            return  # a look at them would stall the device; task_routing marks wrong ones with NaN
        bounds = [config.task_id_bound for _, config in self._active_configs() if config.needs_task_ids]
        bound = min(bounds, default=None)
        if bound is not None and bool(((ids < 0) | (ids >= bound)).any()):
            raise ValueError(f"mola_task_ids: found {ids.unique().tolist()}, allowed are 0 to {bound - 1}")

    def _router_logits(self, name: str, part: nn.Module | None, inputs: dict[str, Any], main_input: Tensor) -> Tensor:
        router, base_model = self.mola_router[name], self._base[0]
        embedding = getattr(router, "uses_embeddings", False)
        if part is not None and part is not base_model:
            # by itself a part is routed like the whole if it gets the very input
            read = "input_ids" if embedding else self._main_inputs[0]
            if not isinstance(inputs.get(read), Tensor) or read not in _parameter_names(base_model):
                raise ValueError(no_router_input(type(part).__name__, sorted(inputs)))
        # the router is small and its softmax delicate: float32 whatever the autocast
        with torch.autocast(main_input.device.type, enabled=False):
            value = mean_embedding(base_model, inputs) if embedding else main_input
            logits = run(router, value)
        expected = (main_input.shape[0], self.configs[name].num_experts)
        if tuple(logits.shape) != expected:
            raise ValueError(f"router: found logits of shape {tuple(logits.shape)}, allowed is [B, E] = {expected}")
        return logits

    def _project(self, name: str) -> Tensor:
        logits = self.routing.now.logits[name]
        with torch.autocast(logits.device.type, enabled=False):
            projected = run(self.mola_projection[name], logits.float())
        # keeps the projection in the graph when nobody adds the TwD loss: DDP demands a gradient for every parameter
        self.routing.now.logits[name] = logits + 0.0 * projected.sum()
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
    """Give the ids of calls that cannot pass `mola_task_ids`, such as `generate`, pipelines, calls of a part.

    Args:
        model: any model with a MoLA adapter.
        task_ids: one id for all samples, which holds for every call whatever its path; or one per sample `[B]`, for
            calls whose batch is those samples (`generate` repeats them for beams), while others are refused; `None`
            takes the setting back. It holds in all threads.

    Returns:
        A context manager. The setting holds at once; a `with` statement undoes it at its end.

    Raises:
        ValueError: the model has no MoLA adapter, or an id is no integer or out of range.
    """
    module = find_routing(model)
    if module is None:
        raise ValueError(f"model: found a {type(model).__name__} without MoLA adapter, allowed is one with")
    if task_ids is not None:
        module._check_range(as_ids(task_ids).reshape(-1).cpu())
    return TaskSetting(module.routing, task_ids)
