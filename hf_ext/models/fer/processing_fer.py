"""Image processor of the FER matcher."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,  # noqa: F401 (with it the model is registered, whose module imports `.vision` in turn)
    PreTrainedModel,
    ViTImageProcessor,
)

from .vision import image_size, pretrained_cfg

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FERProcessor(ViTImageProcessor):
    """Images of faces, of any mode and size, to `pixel_values`: converted to RGB, resized whole, normalised.

    Saved as a `ViTImageProcessor`, which it is but for its constructor and images of 16 bits (see `process_image`),
    and which loads anywhere; `pipeline` finds it in a model's folder.
    """

    do_convert_rgb = True

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> Tensor:
        """`[channels, height, width]`, 3 of them with `do_convert_rgb`.

        Of images of 16 bits (PIL's "I;16", uint16) these are the upper 8, where PIL would cut off all above 255.

        Raises:
            ValueError: values of no known range (PIL's "I" and "F"), or other than 1, 3 or 4 channels.
        """
        mode = str(getattr(image, "mode", ""))
        if mode in ("I", "F"):
            raise ValueError(f"images: found mode {mode!r}, of no known range, allowed are those of 8 or 16 bits")
        if mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        elif isinstance(image, np.ndarray) and image.dtype == np.uint16:
            image = (image // 256).astype(np.uint8)
        pixels = super().process_image(image, *args, **kwargs)
        if kwargs.get("do_convert_rgb", args[0] if args else None) and pixels.shape[0] != 3:
            raise ValueError(f"images: found {pixels.shape[0]} channels, allowed are 1, 3 and 4")
        return pixels

    @classmethod
    def from_backbone(cls, vision: str | PreTrainedModel, **options: Any) -> "FERProcessor":
        """The one that fits a vision backbone.

        Args:
            vision: name or folder, whose own processor's size, normalisation and way to resize are taken; or a model,
                whose size and, of timm, mean and standard deviation are taken, otherwise ImageNet's.
            **options: of `ViTImageProcessor`, such as `size={"height": 112, "width": 112}`.
        """
        if isinstance(vision, str):
            own: Any = AutoImageProcessor.from_pretrained(vision)
            timms = getattr(own, "data_config", None)
            settings = _of_processor(own) if timms is None else _settings(timms["input_size"][-2:], timms)
        else:
            settings = _settings(image_size(vision.config), pretrained_cfg(vision.config))
        return cls(**{**settings, "do_convert_rgb": True, **options})

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "image_processor_type": "ViTImageProcessor"}


def _settings(size: Sequence[int], known: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "size": {"height": size[0], "width": size[1]},
        "image_mean": list(known.get("mean", IMAGENET_MEAN)),
        "image_std": list(known.get("std", IMAGENET_STD)),
    }


def _of_processor(own: Any) -> dict[str, Any]:
    size = getattr(own, "crop_size", None) or own.size
    side = size.get("shortest_edge")
    settings: dict[str, Any] = {"size": {"height": size.get("height", side), "width": size.get("width", side)}}
    for name in ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor", "resample"):
        if getattr(own, name, None) is not None:
            settings[name] = getattr(own, name)
    return settings
