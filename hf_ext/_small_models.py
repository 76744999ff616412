"""Configs of the small models that demos and studies train."""

from collections.abc import Sequence
from typing import Any

from transformers import ConvNextConfig, ResNetConfig, ViTConfig


def vit(**labels: Any) -> ViTConfig:
    """A ViT for the embedded digits of 8 x 8 pixels: two blocks of width 48.

    Args:
        **labels: `num_labels`, or `class_names(...)`.
    """
    return ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        **labels,
    )


def resnet(*, channels: int = 3, widths: Sequence[int] = (16, 32, 64), **labels: Any) -> ResNetConfig:
    """A ResNet of one basic block per width.

    Args:
        channels: of the images.
        widths: channels of the blocks; the embedding has as many as the first.
        **labels: `num_labels`, or `class_names(...)`.
    """
    return ResNetConfig(
        num_channels=channels,
        embedding_size=widths[0],
        hidden_sizes=list(widths),
        depths=[1] * len(widths),
        layer_type="basic",
        **labels,
    )


def convnext(**labels: Any) -> ConvNextConfig:
    """A ConvNeXt for the embedded digits of 8 x 8 pixels: a block of width 32 and one of 64.

    It learns by plain SGD, and has LayerNorms alone: statistics of BatchNorms are a single client's in a federation.

    Args:
        **labels: `num_labels`, or `class_names(...)`.
    """
    return ConvNextConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_stages=2,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        layer_scale_init_value=1.0,
        **labels,
    )


def class_names(names: Sequence[str]) -> dict[str, Any]:
    """What a config says about classes of these names."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
