"""Vision backbones: found by name, or made to fit from what a user has."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

Vision = Any  # a name, a model of transformers, or one of timm


def vision_backbone(vision: Vision) -> PreTrainedModel:
    """A model of transformers.

    Raises:
        ValueError: what is no model of transformers or timm.
    """
    if isinstance(vision, str):
        vision = AutoModel.from_pretrained(vision)
    if isinstance(vision, PreTrainedModel):
        return vision
    if isinstance(vision, nn.Module) and isinstance(getattr(vision, "pretrained_cfg", None), dict):
        return _wrapped_timm(vision)
    raise ValueError(
        f"vision: found {type(vision).__name__}, allowed are a name or folder, a model of transformers, or one of timm"
    )


def _wrapped_timm(model: Any) -> PreTrainedModel:
    from transformers import TimmWrapperConfig, TimmWrapperModel

    config = TimmWrapperConfig.from_dict({"architecture": model.pretrained_cfg["architecture"]}, num_labels=2)
    wrapped = TimmWrapperModel(config)
    weights = {name: value for name, value in model.state_dict().items() if name in wrapped.timm_model.state_dict()}
    try:
        wrapped.timm_model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"vision: found a {config.architecture} of timm with options of its own, allowed are those that "
            f"timm.create_model({config.architecture!r}) makes ({error})"
        ) from error
    return wrapped


def aligned_parts(model: PreTrainedModel) -> tuple[PreTrainedModel, Tensor | None, float | None]:
    """The backbone; of a CLIP-like model the vision part of it, the projection to the texts' width `[D, W]`, and the
    scale of its logits."""
    projection, inner = getattr(model, "visual_projection", None), getattr(model, "vision_model", None)
    if not isinstance(projection, nn.Linear) or inner is None:
        return model, None, None
    backbone = AutoModel.from_config(inner.config)
    backbone.load_state_dict(inner.state_dict())
    scale = getattr(model, "logit_scale", None)
    return backbone, projection.weight.detach(), None if scale is None else min(float(scale.detach().exp()), 100.0)


@torch.no_grad()
def pooled_width(model: PreTrainedModel) -> int:
    """Width of the pooled output, by looking: configurations do not tell.

    Raises:
        ValueError: a model without one.
    """
    size = image_size(model.config)
    was_training = model.training
    model.eval()
    try:
        pixels = torch.zeros(1, _channels(model.config), *size, device=model.device, dtype=model.dtype)
        pooled = getattr(model(pixels), "pooler_output", None)
    finally:
        model.train(was_training)
    if pooled is None:
        raise ValueError(
            f"vision: found {type(model).__name__}, whose output has no pooler_output, allowed are bare models that "
            "have one (AutoModel, not AutoModelForImageClassification)"
        )
    return pooled.flatten(1).shape[1]


def pretrained_cfg(config: Any) -> dict[str, Any]:
    """What timm says of a model of its own."""
    return getattr(config, "pretrained_cfg", None) or {}


def _channels(config: Any) -> int:
    return int(getattr(config, "num_channels", None) or pretrained_cfg(config).get("input_size", (3,))[0])


def image_size(config: Any) -> tuple[int, int]:
    """Height and width that a model expects; 224 of one that says nothing."""
    size = getattr(config, "image_size", None) or pretrained_cfg(config).get("input_size", (3, 224, 224))[1:]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
