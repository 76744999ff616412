"""What prepares faces for the FER matcher."""

from typing import Any

from transformers import AutoImageProcessor, PreTrainedModel, ViTImageProcessor

from .vision import image_size, pretrained_cfg

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FERProcessor(ViTImageProcessor):
    """Images of faces, of any mode and size, to `pixel_values`: converted to RGB, resized whole, normalised.

    Saved as what it is besides its constructor, a `ViTImageProcessor`, which loads anywhere; `pipeline` finds it
    beside a model.
    """

    @classmethod
    def from_backbone(cls, vision: str | PreTrainedModel, **options: Any) -> "FERProcessor":
        """The one that fits a vision backbone.

        Args:
            vision: name or folder, whose own processor's size, mean and standard deviation are taken; or a model,
                whose size and, of timm, mean and standard deviation are taken, otherwise ImageNet's.
            **options: of `ViTImageProcessor`, such as `size={"height": 112, "width": 112}`.
        """
        if isinstance(vision, str):
            own: Any = AutoImageProcessor.from_pretrained(vision)
            mean, std, size = own.image_mean, own.image_std, getattr(own, "crop_size", None) or own.size
            side = size.get("shortest_edge", 0)
            height, width = size.get("height", side), size.get("width", side)
        else:
            known, (height, width) = pretrained_cfg(vision.config), image_size(vision.config)
            mean, std = known.get("mean", IMAGENET_MEAN), known.get("std", IMAGENET_STD)
        found = {
            "size": {"height": height, "width": width},
            "image_mean": list(mean),
            "image_std": list(std),
            "do_convert_rgb": True,
        }
        return cls(**{**found, **options})

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "image_processor_type": "ViTImageProcessor"}
