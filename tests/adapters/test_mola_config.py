"""Configurations that cannot work are refused when they are made."""

from typing import Any

import pytest

from hf_ext.adapters import MoLAConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_experts", None),
        ("num_experts", 0),
        ("num_experts", 2.0),
        ("num_experts", True),
        ("r", 0),
        ("r", "8"),
        ("lora_alpha", -1),
        ("lora_alpha", "16"),
        ("routing", "random"),
        ("conv_form", "depthwise"),
        ("router", 3),
        ("router_kind", "top-k"),
        ("twd_weight", -0.1),
        ("twd_temperature", 0),
        ("twd_dim", 0),
        ("num_tasks", 0),
        ("lora_dropout", 1.0),
        ("bias", "some"),
        ("train_backbone", "yes"),
        ("use_rslora", 1),
        ("rank_pattern", {"q": 0}),
    ],
)
def test_wrong_configurations_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}: found .*, allowed is"):
        MoLAConfig(**{"target_modules": ["q"], "num_experts": 2, name: value})


def test_more_heads_than_experts_need_a_router() -> None:
    with pytest.raises(ValueError, match="num_tasks: found 3, allowed is at most num_experts=2"):
        MoLAConfig(target_modules=["q"], num_experts=2, num_tasks=3, task_heads=["head"])
    assert MoLAConfig(target_modules=["q"], num_experts=2, num_tasks=3, task_heads=["head"], routing="router")
