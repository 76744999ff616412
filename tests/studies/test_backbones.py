"""Backbones that a user gives to a study: what identifies them, what they see, code of their own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from hf_ext.studies.backbones import LinearHead, as_seen_by, load_backbone, options_of

MODEL = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class OwnConfig(PreTrainedConfig):
    model_type = "test_own_backbone"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Conv2d(3, 5, 2)
        self.post_init()

    def forward(self, pixel_values):
        return BaseModelOutputWithPooling(pooler_output=self.layer(pixel_values).mean((2, 3)))
"""


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes)).save_pretrained(tmp_path / "backbone")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def test_images_are_as_the_processor_makes_them(backbone: Path, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8)
    seen = as_seen_by(options_of(str(backbone)), images)
    assert seen.shape == (3, 3, 8, 8) and seen.min() < -0.5
    assert torch.equal(as_seen_by(options_of(str(tmp_path)), images), images / 255)


def test_all_that_a_model_is_made_of_names_the_runs(backbone: Path) -> None:
    before = options_of(str(backbone))
    assert options_of(str(backbone)) == before and before["backbone"] == str(backbone)
    names = {before["sha256"]}
    (backbone / "README.md").write_text("no part of it")
    assert options_of(str(backbone)) == before
    ViTModel.from_pretrained(backbone).to(torch.float16).save_pretrained(backbone)
    names.add(options_of(str(backbone))["sha256"])
    ViTImageProcessor(size={"height": 4, "width": 4}).save_pretrained(backbone)
    names.add(options_of(str(backbone))["sha256"])
    (backbone / "modeling_own.py").write_text(MODEL)
    names.add(options_of(str(backbone))["sha256"])
    assert len(names) == 4
    assert options_of("a/b") == {"backbone": "a/b"}
    assert options_of("a/b", trust_remote_code=True) != options_of("a/b")


def test_code_that_comes_with_a_backbone_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "modeling_own.py").write_text(MODEL)
    places = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    config = {"model_type": "test_own_backbone", "num_channels": 3, "image_size": 4, "auto_map": places}
    (tmp_path / "config.json").write_text(json.dumps(config))
    trusted = options_of(str(tmp_path), trust_remote_code=True)
    weights = {"layer.weight": torch.ones(5, 3, 2, 2), "layer.bias": torch.arange(5.0)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_backbone(options_of(str(tmp_path)))
    head = LinearHead(load_backbone(trusted), 7)
    assert head.classifier.in_features == 5
    assert torch.equal(head.backbone.layer.bias, torch.arange(5.0))
