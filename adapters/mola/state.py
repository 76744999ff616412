"""The routing of the calls in progress: what the hooks of `routing.py` write and all MoLA layers read."""

import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from hf_ext.adapters.mola.config import MoLAConfig
from hf_ext.functional.mola import task_routing

TaskIds = int | Sequence[int] | Tensor
_TEXT_INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")


class Frame:
    """Routing of one call, as the layers inside see it.

    Attributes:
        weights: adapter name -> routing weights `[B, E]` (or `[1, E]`), by which the adapted layers mix their experts.
        heads: adapter name -> one-hot `[B, num_tasks]`, by which per-task heads are picked.
        module: the module that is called; None for a whole `generate`, whose forwards come later.
        parent: the call that it is part of.
        batch: rows of the call's input.
        caller: of the interpreter, what called the module and runs until the call is over; None if not known.
        shapes: shapes of the call's tensors.
        splits: whether a layer may see several rows per sample (windows of an image); the tokens of a text stay in
            one row.
    """

    def __init__(self, module: nn.Module | None, inputs: dict[str, Any], parent: "Frame | None" = None) -> None:
        self.weights: dict[str, Tensor] = {}
        self.heads: dict[str, Tensor] = {}
        self.module = module
        self.parent = parent
        self.batch: int | None = None
        self.caller: FrameType | None = None
        self.shapes = [value.shape for value in inputs.values() if isinstance(value, Tensor)]
        self.splits = not any(isinstance(inputs.get(name), Tensor) for name in _TEXT_INPUTS)

    def call(self, module: nn.Module, inputs: dict[str, Any], batch: int) -> "Frame":
        """A call within this one that shares its routing; `batch` is a multiple of its rows."""
        frame = Frame(module, inputs, self)
        frame.weights = {name: _repeated(each, batch) for name, each in self.weights.items()}
        frame.heads = {name: _repeated(each, batch) for name, each in self.heads.items()}
        return frame

    @property
    def is_prompt(self) -> bool:
        """Whether it is a whole `generate`, whose forwards bring a multiple of its rows (beams)."""
        return self.module is None

    @property
    def is_over(self) -> bool:
        """Whether the call was interrupted: torch runs no hooks after a KeyboardInterrupt."""
        if self.caller is None:
            return False
        try:
            self.caller.clear()  # refused as long as it runs
        except RuntimeError:
            return False
        return True

    @property
    def rows(self) -> int:
        """B, or 1 if one routing serves whatever comes."""
        return max((value.shape[0] for value in (*self.weights.values(), *self.heads.values())), default=1)

    def flattens_to(self, shape: torch.Size) -> bool:
        """Whether `[B * k, ...]` are the k rows that every sample of a tensor `[B, k, ...]` of this call brings."""
        return any(
            outer[0] == self.rows and outer[0] * outer[1] == shape[0] and outer[2:] == shape[1:]
            for outer in self.shapes
            if len(outer) == len(shape) + 1
        )

    def fit(self, weights: Tensor, x: Tensor) -> Tensor:
        """`[B, E]` as it is, for a layer whose input x has one row per sample, or several that are neighbours.

        Raises:
            ValueError: the rows of x are not known to be those of the samples in order.
        """
        rows, batch = weights.shape[0], x.shape[0]
        if rows in (1, batch):
            return weights
        # all tokens in one axis, in the order of the samples, as in the layers of experts
        tokens = x.ndim == 2 and any(shape[0] == rows and shape[:2].numel() == batch for shape in self.shapes if shape)
        if batch % rows or not (tokens or (x.ndim > 2 and self.splits)):
            raise ValueError(
                f"mola_task_ids: found routing for {rows} samples in a layer that got {batch} rows, allowed is one "
                "row per sample (inputs that mix samples, such as packed sequences or the images of several samples, "
                "cannot be routed; one id for all, set_task(id), serves any)"
            )
        return weights


def _repeated(weights: Tensor, batch: int) -> Tensor:
    """`[B, E]` for a batch in which every sample is batch / B neighbouring rows; `[1, E]` as it is."""
    rows = weights.shape[0]
    return weights if rows in (1, batch) else weights.repeat_interleave(batch // rows, dim=0)


class _State:
    def __init__(self) -> None:
        self.frame: Frame | None = None
        self.last = Frame(None, {})
        self.logits: dict[str, Tensor] = {}
        self.projected: dict[str, Tensor] = {}


class _OfThread(threading.local):
    # a member and not the attributes themselves: what a compiled forward writes to those would be lost
    def __init__(self) -> None:
        self.state = _State()


class Routing:
    """Routing state shared by all MoLA layers of a base model; every thread has calls of its own.

    Attributes:
        default_task_ids: ids of calls that bring none (`set_task`), in any thread.
        configs: adapter name -> its configuration.
    """

    def __init__(self) -> None:
        self.default_task_ids: TaskIds | None = None
        self.configs: dict[str, MoLAConfig] = {}
        self._start()

    def _start(self) -> None:
        self._of_thread = _OfThread()
        self._latest = Frame(None, {})

    @property
    def now(self) -> _State:
        """Of this thread."""
        return self._of_thread.state

    @property
    def weights(self) -> dict[str, Tensor]:
        """Adapter name -> routing weights `[B, E]` (or `[1, E]`) of this thread's last call."""
        return self.now.last.weights

    @property
    def heads(self) -> dict[str, Tensor]:
        """Adapter name -> one-hot `[B, num_tasks]` of this thread's last call."""
        return self.now.last.heads

    @property
    def logits(self) -> dict[str, Tensor]:
        """Adapter name -> the router's `[B, E]` logits, if this thread's last call ran it."""
        return self.now.logits

    @property
    def projected(self) -> dict[str, Tensor]:
        """Adapter name -> `[B, twd_dim]`, features of the TwD loss (training only)."""
        return self.now.projected

    def __getstate__(self) -> dict[str, Any]:
        # copies of a model start without the last forward's tensors, which belong to its graph
        return {"default_task_ids": self.default_task_ids, "configs": self.configs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    # ---------------------------------------------------------------------------------------------- calls
    def begin(self, frame: Frame) -> None:
        """A call starts that is not part of another forward."""
        now = self.now
        now.frame = now.last = self._latest = frame

    def current(self) -> Frame | None:
        """The call in progress in this thread; those that were interrupted are forgotten."""
        now = self.now
        if torch.compiler.is_compiling():
            return now.frame
        while now.frame is not None and now.frame.is_over:
            now.frame = now.frame.parent
        return now.frame

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which always runs with the routing at the time of this call: gradient checkpointing runs a block
        again in backward, possibly after another forward and in another thread."""
        frame = self.now.frame

        def bound(*args: Any, **kwargs: Any) -> Any:
            now = self.now
            later, now.frame = now.frame, frame
            try:
                return function(*args, **kwargs)
            finally:
                now.frame = later

        return bound

    # ---------------------------------------------------------------------------------------------- layers
    def weights_for(self, name: str, x: Tensor) -> Tensor:
        """Weights `[R, E]` for a layer's input, a row for each of R equal parts of it.

        Raises:
            ValueError: nothing says how to route it.
        """
        frame = self.current() or self._recomputed()
        if frame is not None and name in frame.weights:
            return frame.fit(frame.weights[name], x)
        config = self.configs[name]
        if config.routing == "router":
            raise ValueError(no_router_input("a part of the model", "what the layers before it made"))
        return self._by_default_ids(config, config.num_experts, x)

    def heads_for(self, name: str, x: Tensor) -> Tensor:
        """One-hot `[len(x), num_tasks]` (or one row) for the input of a per-task head; errors as of `weights_for`."""
        frame = self.current() or self._recomputed()
        if frame is not None and name in frame.heads:
            return _repeated(frame.fit(frame.heads[name], x), x.shape[0])
        config = self.configs[name]
        return self._by_default_ids(config, config.num_tasks or config.num_experts, x)

    def _recomputed(self) -> Frame | None:
        """The last call, for a block that a checkpoint of the user's own runs again in backward."""
        in_backward = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        return self._latest if in_backward else None

    def _by_default_ids(self, config: MoLAConfig, num: int, x: Tensor) -> Tensor:
        if self.default_task_ids is None:
            raise ValueError(ids_missing(config))
        return task_routing(self.default_ids(x.shape[0]).to(x.device, non_blocking=True), num_experts=num)

    def default_ids(self, batch: int) -> Tensor:
        """`set_task`'s ids for a call: `[batch]` or `[1]`.

        Raises:
            ValueError: they are for another batch.
        """
        ids = as_ids(self.default_task_ids)
        if ids.ndim == 0:
            return ids.reshape(1)
        if ids.shape != (batch,):
            raise ValueError(
                f"mola_task_ids: found ids of shape {tuple(ids.shape)} for {batch} samples, allowed is one per sample "
                "of the call, or one for all: set_task(id) holds for every call"
            )
        return ids


# ------------------------------------------------------------------------------------------------ ids, messages
def as_ids(task_ids: Any) -> Tensor:
    """Task ids as an integer tensor, or ValueError."""
    try:
        ids = task_ids if isinstance(task_ids, Tensor) else torch.as_tensor(task_ids)
    except (TypeError, ValueError, RuntimeError) as error:  # text, None, lists of different lengths
        raise ValueError(f"mola_task_ids: found {task_ids!r}, allowed are integers") from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"mola_task_ids: found {ids.dtype}, allowed are integers")
    return ids


def ids_missing(config: MoLAConfig) -> str:
    """What to say when a call has no task ids."""
    return (
        f"mola_task_ids: found None, allowed is one task id in [0, {config.task_id_bound}) per sample; "
        "pass mola_task_ids=..., or call set_task(...) where a call cannot (generate, pipelines)"
    )


def no_router_input(part: str, found: Any) -> str:
    """What to say when a part of the model is called by itself and a router would have to route it."""
    return (
        f"routing: found a call of {part} alone with {found}, allowed with routing='router' are calls of the whole "
        "model, of generate, or of a part that gets what the router reads, one row per sample"
    )
