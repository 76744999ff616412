"""MoLA on a tiny ViT."""

from typing import Any

import torch
from peft import get_peft_model
from train import vit

from hf_ext.adapters import MoLAConfig
from hf_ext.trainers import MoLATrainer, MoLATrainingConfig


class LinearRouter(torch.nn.Module):
    """A router without BatchNorm, whose statistics would differ between one process and two."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 3)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.linear(pixel_values.flatten(1))


def build(options: dict[str, Any]) -> tuple[type[MoLATrainer], type[MoLATrainingConfig], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    base = vit(options)
    adapter = {"target_modules": ["q_proj", "fc1"], "num_experts": 3, "r": 4, "modules_to_save": ["classifier"]}
    adapter |= options.get("adapter", {})
    if adapter.get("routing") == "router" and options.get("linear_router"):
        adapter["router"] = LinearRouter()
    return MoLATrainer, MoLATrainingConfig, {"model": get_peft_model(base, MoLAConfig(**adapter))}
