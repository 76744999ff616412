"""A pretrained vision backbone that a user gives to a study: what identifies it, what it sees, a linear head on it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoImageProcessor
from transformers.modeling_outputs import ImageClassifierOutput

from hf_ext.models.fer.vision import Backbone, pooled, pooled_width, vision_backbone

_READ = (".json", ".py", ".safetensors")  # the files of a folder that a model and its processor are made of


def options_of(place: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """The options of a case that say which backbone it is: saved runs are looked up by them.

    Args:
        place: a Hub id, or the folder of a model of transformers. What a folder holds is named by its SHA-256.
        trust_remote_code: whether code that comes with the model may run.
    """
    options: dict[str, Any] = {"backbone": place}
    if Path(place).is_dir():
        digest = hashlib.sha256()
        for file in sorted(path for path in Path(place).iterdir() if path.suffix in _READ):
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        options["sha256"] = digest.hexdigest()
    return options | ({"trust_remote_code": True} if trust_remote_code else {})


def load_backbone(options: Mapping[str, Any]) -> Backbone:
    """The backbone that these options of a case name."""
    return vision_backbone(options["backbone"], trust_remote_code=options.get("trust_remote_code", False))


def as_seen_by(options: Mapping[str, Any], images: Tensor) -> Tensor:
    """Pixel values of images `[N, 3, H, W]` of 0 to 255; of a backbone without an image processor from 0 to 1."""
    trust = options.get("trust_remote_code", False)
    try:
        processor: Any = AutoImageProcessor.from_pretrained(options["backbone"], trust_remote_code=trust)
    except (OSError, ValueError):
        return images.float() / 255
    values: Tensor = processor(images=list(images), return_tensors="pt")["pixel_values"]
    return values


class LinearHead(nn.Module):
    """A backbone with a linear classifier, which is new."""

    main_input_name = "pixel_values"

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone, self.pools = backbone.model, backbone.pools
        self.classifier = nn.Linear(pooled_width(backbone), classes)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        logits = self.classifier(pooled(self.backbone(pixel_values), self.pools))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
