"""A model of ours from a Trainer to the Hub, and from there to processes with hf_ext and without."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import ModelCard
from server import Hub

pytestmark = pytest.mark.slow

TRAIN = """
import time
time.sleep = lambda seconds: None
import hf_ext, torch
from datasets import Dataset
from transformers import ViTConfig, ViTModel
from hf_ext.models import FERForImageClassification, FERProcessor
from hf_ext.trainers import FERTrainer, FERTrainingConfig

torch.manual_seed(0)
sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16}
vision = ViTModel(ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))
texts = torch.randn(3, 12)
model = FERForImageClassification.from_backbones(vision, lambda prompts: texts, ["neutral", "happy", "sad"])
data = Dataset.from_dict({"pixel_values": torch.randn(12, 3, 16, 16).numpy(), "labels": [0, 1, 2] * 4})
args = FERTrainingConfig(
    "faces", max_steps=2, save_steps=1, logging_steps=1, per_device_train_batch_size=4, report_to="none",
    use_cpu=True, push_to_hub=True, hub_strategy="every_save", hub_always_push=True,
)
trainer = FERTrainer(
    model, args, train_dataset=data.with_format("torch"), processing_class=FERProcessor.from_backbone(vision)
)
trainer.train()
trainer.push_to_hub()
result = model.eval()(torch.ones(1, 3, 16, 16)).logits.tolist()
"""
USE = """
import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

model = AutoModelForImageClassification.from_pretrained("me/faces"{options}).eval()
face = Image.fromarray(np.zeros((20, 20), dtype=np.uint8))
found = pipeline("image-classification", model="me/faces"{options})(face)
result = {{
    "logits": model(torch.ones(1, 3, 16, 16)).logits.tolist(),
    "labels": sorted(row["label"] for row in found),
    "module": type(model).__module__,
}}
"""
#: as on a machine where it is not installed
NOWHERE = """
import sys


class Nowhere:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "hf_ext":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, Nowhere())
"""


def test_a_matcher_is_pushed_and_loads_anywhere(hub: Hub, in_process: Callable[..., Any]) -> None:
    logits = in_process(TRAIN)
    repo = hub.repos["me/faces"]
    assert {"modeling_fer.py", "configuration_fer.py", "preprocessor_config.json", "texts.png"} <= set(repo.files())
    card = ModelCard(repo.files()["README.md"].decode())
    assert card.data.pipeline_tag == "image-classification" and "fer" in card.data.tags
    with_it = in_process("import hf_ext\n" + USE.format(options=""))
    without = in_process(NOWHERE + USE.format(options=", trust_remote_code=True"))
    for found in (with_it, without):
        assert found["logits"] == logits and found["labels"] == ["happy", "neutral", "sad"]
    assert with_it["module"] == "hf_ext.models.fer.modeling_fer"
    assert without["module"].startswith("transformers_modules.")
    snippets = "\n".join(re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL))
    image = 'from PIL import Image\nImage.new("L", (20, 20)).save("image.png")'
    assert (
        in_process(f"{image}\n{snippets}\nimport torch\nresult = model(torch.ones(1, 3, 16, 16)).logits.tolist()")
        == logits
    )
