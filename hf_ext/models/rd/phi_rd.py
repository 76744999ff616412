"""The module phi of RD, which maps a teacher's features to the width of the student's."""

from typing import Any

from torch import Tensor, nn

from .configuration_rd import RDConfig


class RDVectorPhi(nn.Sequential):
    """`[B, teacher_width] -> [B, D]`: Linear, GELU, Linear."""

    def __init__(self, config: RDConfig, width: int) -> None:
        hidden = config.phi_width or 2 * width
        super().__init__(nn.Linear(config.teacher_width, hidden), nn.GELU(), nn.Linear(hidden, width))


class RDMapPhi(nn.Sequential):
    """`[B, teacher_width, H, W] -> [B, D]`: three convolutions with GELUs between them, the mean over places."""

    def __init__(self, config: RDConfig, width: int) -> None:
        hidden = config.phi_width or 2 * width
        super().__init__(
            nn.Conv2d(config.teacher_width, hidden, 1),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, width, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def make_phi(config: RDConfig, width: int) -> nn.Sequential:
    """Phi of the kind that the configuration names; `width` is that of the student's features."""
    kinds: dict[str, Any] = {"mlp": RDVectorPhi, "conv": RDMapPhi}
    return kinds[config.phi_kind](config, width)


def as_phi_takes_it(features: Tensor, config: RDConfig) -> Tensor:
    """Features in the shape that phi takes: vectors `[B, W]` (trailing places of size 1 are dropped), or maps.

    Raises:
        ValueError: another shape.
    """
    shape, width = tuple(features.shape), config.teacher_width
    if config.phi_kind == "mlp" and features.ndim > 1:
        features = features.flatten(1)
    dims, allowed = (2, f"[B, {width}]") if config.phi_kind == "mlp" else (4, f"[B, {width}, H, W]")
    if features.ndim != dims or features.shape[1] != width:
        raise ValueError(
            f"teacher_features: found shape {shape}, allowed is {allowed} with teacher_width={width} and "
            f"phi_kind={config.phi_kind!r}"
        )
    return features
