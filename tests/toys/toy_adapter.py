"""The smallest adapter type: a factor on the outputs of linear layers."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from hf_ext.adapters._register import register_adapter


class ToyType(StrEnum):
    TOY = "TOY"


@dataclass
class ToyConfig(PeftConfig):
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ToyType.TOY


class ToyLayer(nn.Module, BaseTunerLayer):
    adapter_layer_names = ("toy_factor",)

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.toy_factor = nn.ParameterDict({adapter_name: nn.Parameter(torch.ones(()))})
        self.set_adapter([adapter_name])

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) * self.toy_factor[self.active_adapters[0]]


class ToyModel(BaseTuner):
    prefix = "toy_"
    tuner_layer_cls = ToyLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _create_and_replace(
        self,
        peft_config: ToyConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        **_: Any,
    ) -> None:
        self._replace_module(parent, target_name, ToyLayer(target, adapter_name), target)


register_adapter(ToyType.TOY, ToyConfig, ToyModel, ToyModel.prefix)
