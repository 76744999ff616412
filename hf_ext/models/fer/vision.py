"""Vision backbones: loaded by name, or adapted from a model of transformers or timm."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

Vision = Any  # a name, a model of transformers, or one of timm


@dataclass
class Backbone:
    """A vision model and how its features reach the texts.

    Args:
        model: of transformers.
        pools: whether it has a pooled output; its first token is taken otherwise.
        projection: of a CLIP-like model, `[D, W]`: its features are aligned with its texts.
        scale: of a CLIP-like model's logits.
    """

    model: PreTrainedModel
    pools: bool = True
    projection: Tensor | None = None
    scale: float | None = None


def vision_backbone(vision: Vision, *, trust_remote_code: bool = False) -> Backbone:
    """From a name or folder, a model of transformers, also one of images and texts, or one of timm.

    Args:
        vision: one of these.
        trust_remote_code: whether code that comes with a name or folder may run.

    Raises:
        ValueError: none of these.
    """
    pools = True
    if isinstance(vision, str):
        vision, loading = AutoModel.from_pretrained(
            vision, output_loading_info=True, trust_remote_code=trust_remote_code
        )
        # a classifier's checkpoint may have no weights for a pooler, which would be made of random ones
        pools = not any(name.split(".")[0] == "pooler" for name in loading["missing_keys"])
    if isinstance(vision, nn.Module) and isinstance(getattr(vision, "pretrained_cfg", None), dict):
        vision = _wrapped_timm(vision)
    if not isinstance(vision, PreTrainedModel):
        raise ValueError(
            f"vision: found {type(vision).__name__}, allowed are a name or folder, a model of transformers, or one of "
            "timm"
        )
    inner = getattr(vision, "vision_model", None)
    return _of_both(vision, inner) if isinstance(inner, nn.Module) else Backbone(vision, pools)


def _of_both(model: Any, inner: Any) -> Backbone:
    """Of a model of images and texts: CLIP projects its pooled output, SigLIP's is as wide as the texts' features."""
    backbone = AutoModel.from_config(inner.config)
    backbone.load_state_dict(inner.state_dict())
    projection = getattr(model, "visual_projection", None)
    scale = getattr(model, "logit_scale", None)
    return Backbone(
        backbone,
        projection=projection.weight.detach() if isinstance(projection, nn.Linear) else _identity(inner.config),
        scale=None if scale is None else min(float(scale.detach().exp()), 100.0),
    )


def _identity(config: Any) -> Tensor:
    return torch.eye(int(config.hidden_size))


def _wrapped_timm(model: Any) -> PreTrainedModel:
    from transformers import TimmWrapperConfig, TimmWrapperModel

    known = {"architecture": model.pretrained_cfg["architecture"], "pretrained_cfg": dict(model.pretrained_cfg)}
    config = TimmWrapperConfig.from_dict(known, num_labels=2)
    wrapped = TimmWrapperModel(config)
    state = {name: value for name, value in model.state_dict().items() if name in wrapped.timm_model.state_dict()}
    try:
        wrapped.timm_model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"vision: found a {config.architecture} of timm with options of its own, allowed are those that "
            f"timm.create_model({config.architecture!r}) makes ({error})"
        ) from error
    return wrapped


def pooled(outputs: Any, pools: bool) -> Tensor | None:
    """The pooled output of a vision model `[B, W]`, or its first token; None if it has neither."""
    if pools:
        output = getattr(outputs, "pooler_output", None)
        return None if output is None else output.flatten(1)
    return outputs.last_hidden_state[:, 0]


@torch.no_grad()
def pooled_width(backbone: Backbone) -> int:
    """Width of the pooled output, from a forward pass: configurations do not tell.

    Raises:
        ValueError: a model without one.
    """
    model = backbone.model
    was_training = model.training
    model.eval()
    try:
        size = (_channels(model.config), *image_size(model.config))
        output = pooled(model(torch.zeros(1, *size, device=model.device, dtype=model.dtype)), backbone.pools)
    finally:
        model.train(was_training)
    if output is None:
        raise ValueError(
            f"vision: found {type(model).__name__}, whose output has no pooler_output, allowed are bare models that "
            "have one (AutoModel, not AutoModelForImageClassification)"
        )
    return output.shape[1]


def pretrained_cfg(config: Any) -> dict[str, Any]:
    """timm's own settings of a model (input size, mean, ...), empty for other models."""
    return getattr(config, "pretrained_cfg", None) or {}


def _channels(config: Any) -> int:
    return int(getattr(config, "num_channels", None) or pretrained_cfg(config).get("input_size", (3,))[0])


def image_size(config: Any) -> tuple[int, int]:
    """Height and width that a model expects; 224 of one that says nothing."""
    size = getattr(config, "image_size", None) or pretrained_cfg(config).get("input_size", (3, 224, 224))[1:]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
