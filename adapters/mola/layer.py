"""The adapted layers: a base layer and, for every adapter, E low-rank updates mixed by the routing weights."""

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_ext.adapters.mola.config import MoLAConfig
from hf_ext.adapters.mola.safety import Expect
from hf_ext.adapters.mola.state import Routing
from hf_ext.adapters.mola.tuner_layer import WrappingLayer
from hf_ext.functional.mola import lora_mixture_conv2d, lora_mixture_linear


class MoLALayer(WrappingLayer):
    """Base of linear layers and convolutions: stacked parameters, scaling, the mixing forward."""

    adapter_layer_names: tuple[str, ...] = ("mola_A", "mola_B")
    other_param_names: tuple[str, ...] = ("mola_dropout", "mola_scaling", "mola_form")

    def __init__(self, base_layer: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.routing = routing
        self.mola_A = nn.ParameterDict()
        self.mola_B = nn.ParameterDict()
        self.mola_dropout = nn.ModuleDict()
        self.mola_scaling: dict[str, float] = {}
        self.mola_form: dict[str, Literal["factored", "loralib"]] = {}

    def update_layer(self, adapter_name: str, config: MoLAConfig, r: int, lora_alpha: float, expect: Expect) -> None:
        """Add the E experts of an adapter."""
        shape_A, shape_B = ((config.num_experts, *shape) for shape in self._shapes(r, config))
        expect("mola_A", shape_A)
        expect("mola_B", shape_B)
        self.mola_A[adapter_name] = nn.Parameter(torch.empty(shape_A))
        self.mola_B[adapter_name] = nn.Parameter(torch.empty(shape_B))
        self.mola_dropout[adapter_name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.mola_scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        self.mola_form[adapter_name] = config.conv_form
        self.reset_parameters(adapter_name, config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def reset_parameters(self, adapter_name: str, init_weights: bool = True) -> None:
        """Every A_e Kaiming-uniform with a = sqrt(5), every B_e zero (random with `init_weights=False`)."""
        lora_A, lora_B = self.mola_A[adapter_name], self.mola_B[adapter_name]
        _uniform_by_fan_in(lora_A)
        if init_weights:
            nn.init.zeros_(lora_B)
        else:
            _uniform_by_fan_in(lora_B)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name in self.mola_A:
                lora_A = self.mola_A[name]
                weights = self.routing.weights_for(name, x)
                inputs = self.mola_dropout[name](self._cast_input_dtype(x, lora_A.dtype))
                result = self._add_update(name, inputs, weights, result)
        return result

    def _is_one_hot(self, adapter_name: str) -> bool:
        """Whether each sample has one expert, known without a look at its weights."""
        return self.routing.configs[adapter_name].routing == "task"

    def task_update(self, adapter_name: str, task_id: int) -> Tensor:
        """`s D_t` in the shape of the base weight, in at least float32."""
        lora_A, lora_B = self.mola_A[adapter_name][task_id], self.mola_B[adapter_name][task_id]
        dtype = torch.promote_types(lora_A.dtype, torch.float32)
        return self.mola_scaling[adapter_name] * self._product(lora_A.to(dtype), lora_B.to(dtype))

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("merge: a mixture has no single merged weight; use merge_task(task_id) with routing='task'")

    def unmerge(self) -> None:
        """Nothing is ever merged in place."""

    @abstractmethod
    def _shapes(self, r: int, config: MoLAConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of one expert's A and B."""

    @abstractmethod
    def _add_update(self, adapter_name: str, x: Tensor, weights: Tensor, result: Tensor) -> Tensor:
        """`result` plus the mixed update of `x`."""

    @abstractmethod
    def _product(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        """`D` of one expert in the shape of the base weight."""


def _uniform_by_fan_in(stacked: Tensor) -> None:
    # kaiming_uniform_(a=sqrt(5)) of each expert at once: its bound is 1 / sqrt(fan_in)
    bound = 1 / math.sqrt(math.prod(stacked.shape[2:]))
    nn.init.uniform_(stacked, -bound, bound)


class MoLALinear(MoLALayer):
    """A mixture of low-rank adapters on `nn.Linear`, or on transformers' `Conv1D` (the linear layer of GPT-2)."""

    @property
    def in_features(self) -> int:
        return self._oriented(self.weight).shape[1]

    @property
    def out_features(self) -> int:
        return self._oriented(self.weight).shape[0]

    def _shapes(self, r: int, config: MoLAConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        out_features, in_features = self._oriented(self.weight).shape
        return (r, in_features), (out_features, r)

    def _oriented(self, weight: Tensor) -> Tensor:
        return weight.t() if isinstance(self.get_base_layer(), Conv1D) else weight

    def _add_update(self, adapter_name: str, x: Tensor, weights: Tensor, result: Tensor) -> Tensor:
        lora_A, lora_B = self.mola_A[adapter_name], self.mola_B[adapter_name]
        options: Any = {"scaling": self.mola_scaling[adapter_name], "one_hot": self._is_one_hot(adapter_name)}
        if result.dtype == lora_B.dtype or torch.is_autocast_enabled(x.device.type):
            return lora_mixture_linear(x, lora_A, lora_B, weights, base=result, **options)
        return result + lora_mixture_linear(x, lora_A, lora_B, weights, **options).to(result.dtype)

    def _product(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return self._oriented(lora_B @ lora_A)


class MoLAConv2d(MoLALayer):
    """A mixture of low-rank adapters on an ungrouped `nn.Conv2d`, in the factored or the loralib form."""

    @property
    def in_features(self) -> int:
        return self.in_channels

    @property
    def out_features(self) -> int:
        return self.out_channels

    def _shapes(self, r: int, config: MoLAConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        conv: Any = self.get_base_layer()
        height, width = conv.kernel_size
        if config.conv_form == "factored":
            return (r, conv.in_channels, height, width), (conv.out_channels, r)
        if height != width:
            raise ValueError(f"conv_form: found 'loralib' for a {height} x {width} kernel, allowed are square kernels")
        return (r * height, conv.in_channels * height), (conv.out_channels * height, r * height)

    def _add_update(self, adapter_name: str, x: Tensor, weights: Tensor, result: Tensor) -> Tensor:
        conv: Any = self.get_base_layer()
        padding = conv.padding
        if conv.padding_mode != "zeros":
            x = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
            padding = 0
        update = lora_mixture_conv2d(
            x,
            self.mola_A[adapter_name],
            self.mola_B[adapter_name],
            weights,
            scaling=self.mola_scaling[adapter_name],
            kernel_size=conv.kernel_size,
            stride=conv.stride,
            padding=padding,
            dilation=conv.dilation,
            form=self.mola_form[adapter_name],
            one_hot=self._is_one_hot(adapter_name),
        )
        return result + update.to(result.dtype)

    def _product(self, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        if lora_A.ndim == 4:
            return torch.einsum("or,rihw->oihw", lora_B, lora_A)
        return (lora_B @ lora_A).reshape(self.weight.shape)


class MoLAHead(WrappingLayer):
    """A linear layer (a classifier, usually) of which every task has its own trained copy."""

    adapter_layer_names = ("mola_head_weight", "mola_head_bias")

    def __init__(self, base_layer: nn.Linear, routing: Routing) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.routing = routing
        self.mola_head_weight = nn.ParameterDict()
        self.mola_head_bias = nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: MoLAConfig, expect: Expect) -> None:
        """Give an adapter its heads, copies of the base layer."""
        base: Any = self.get_base_layer()
        copies = config.num_tasks or config.num_experts
        expect("mola_head_weight", (copies, *base.weight.shape))
        if base.bias is not None:
            expect("mola_head_bias", (copies, *base.bias.shape))
        self.mola_head_weight[adapter_name] = nn.Parameter(base.weight.detach().repeat(copies, 1, 1))
        if base.bias is not None:
            self.mola_head_bias[adapter_name] = nn.Parameter(base.bias.detach().repeat(copies, 1))
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def forward(self, x: Tensor) -> Tensor:
        """`y_b = W_{t_b} x_b + bias_{t_b}`: all heads at once (they are narrow), then each sample's own."""
        name = next((name for name in self.active_adapters if name in self.mola_head_weight), None)
        if name is None or self.disable_adapters:
            return self.base_layer(x)
        weight = self.mola_head_weight[name]
        picked = self.routing.heads_for(name, x).to(weight.dtype)
        every = torch.einsum("b...i,eoi->b...eo", self._cast_input_dtype(x, weight.dtype), weight)
        if name in self.mola_head_bias:
            every = every + self.mola_head_bias[name]
        return torch.einsum("b...eo,be->b...o", every, picked.expand(x.shape[0], -1)).to(x.dtype)

    def task_head(self, adapter_name: str, task_id: int) -> tuple[Tensor, Tensor | None]:
        """Weight `[out, in]` and bias `[out]` of a task's copy."""
        bias = self.mola_head_bias[adapter_name][task_id] if adapter_name in self.mola_head_bias else None
        return self.mola_head_weight[adapter_name][task_id], bias

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("merge: per-task heads have no single merged weight; use merge_task(task_id)")

    def unmerge(self) -> None:
        """Nothing is ever merged in place."""
