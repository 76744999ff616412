"""The calls for adapters that models of transformers have themselves."""

import re
from pathlib import Path

import peft
import pytest
import torch
from packaging import version
from peft import get_peft_model
from transformers import ViTConfig, ViTForImageClassification
from transformers.integrations.peft import MIN_PEFT_VERSION

from hf_ext.adapters import MoLAConfig


@pytest.mark.skipif(
    version.parse(peft.__version__) >= version.parse(MIN_PEFT_VERSION),
    reason="transformers takes this peft for all calls",
)
def test_what_transformers_asks_of_peft(tmp_path: Path) -> None:
    """As `adapters/README.md` says it: with this peft its own models load an adapter, and do no more with one."""
    config = ViTConfig(image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_labels=3)
    config.num_attention_heads, config.intermediate_size = 2, 16
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    base = ViTForImageClassification.from_pretrained(tmp_path / "base")
    options = MoLAConfig(target_modules=["q_proj"], num_experts=2, r=2, init_weights=False)
    adapted = get_peft_model(base, options).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    inputs = {"pixel_values": torch.randn(2, 1, 8, 8), "mola_task_ids": torch.tensor([0, 1])}
    native = ViTForImageClassification.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(native(**inputs).logits, adapted(**inputs).logits)
    calls = (
        lambda: native.add_adapter(options, "two"),
        native.disable_adapters,
        lambda: native.delete_adapter("default"),
    )
    for call in calls:
        with pytest.raises(ValueError, match=re.escape(MIN_PEFT_VERSION)):
            call()
