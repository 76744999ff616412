"""Models with a fixed simplex head through the Hub: pushed, and pulled with and without this package."""

from collections.abc import Callable
from typing import Any

import pytest
from server import Hub

pytestmark = pytest.mark.slow

PUSH = """
import hf_ext, torch
from transformers import ViTConfig, ViTForImageClassification

torch.manual_seed(0)
sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
vit = ViTForImageClassification(ViTConfig(**sizes, num_attention_heads=2, num_labels=3))
model = hf_ext.replace_classifier(vit, seed=7).eval()
model.push_to_hub("me/simplex")
images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
result = model(images).logits.tolist()
"""
LOAD = """
import {imports}sys, torch
from transformers import AutoModelForImageClassification

class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_ext" and {without}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
model = AutoModelForImageClassification.from_pretrained("me/simplex"{options}).eval()
result = [type(model).__module__.split(".")[0], model.config.etf_seed, model(images).logits.tolist()]
"""


def test_by_id_with_and_without_this_package(hub: Hub, in_process: Callable[..., Any]) -> None:
    pushed = in_process(PUSH)
    files = set(hub.repos["me/simplex"].files())
    assert {
        "config.json",
        "model.safetensors",
        "classifier_etf.py",
        "configuration_etf.py",
        "modeling_etf.py",
    } <= files
    here = in_process(LOAD.format(imports="hf_ext, ", without=False, options=""))
    there = in_process(LOAD.format(imports="", without=True, options=", trust_remote_code=True"))
    assert here == ["hf_ext", 7, pushed]
    assert there == ["transformers_modules", 7, pushed]
