"""Networks that turn the model's input into routing logits, and the table of their names."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

RouterBuilder = Callable[..., nn.Module]
_BUILDERS: dict[str, RouterBuilder] = {}


def register_router(name: str, builder: RouterBuilder) -> None:
    """Make `MoLAConfig(router=name)` build the router by `builder(base_model, num_experts)`.

    Register before the adapter is created or loaded: an adapter's file names its router and never brings code along.
    The module maps the model's main input (pixel values, token ids, ...) to `[B, E]` logits; if it has a true
    attribute `uses_embeddings`, it gets the mean input embedding `[B, width]` instead.

    Raises:
        ValueError: the name belongs to another builder.
    """
    if _BUILDERS.get(name, builder) is not builder:
        raise ValueError(f"name: found {name!r}, which is taken; allowed is a name not in {sorted(_BUILDERS)}")
    _BUILDERS[name] = builder


def build_router(
    router: str | nn.Module | None, base_model: nn.Module, num_experts: int, norm: Literal["batch", "layer"] = "batch"
) -> nn.Module:
    """The router a config asks for; `norm` is of the networks for images.

    Raises:
        ValueError: unknown name, no default for a model without image or text input, or a norm for another router.
    """
    if isinstance(router, nn.Module):
        if norm != "batch":
            raise ValueError(f"router_norm: found {norm!r} with a router of your own, allowed is 'batch'")
        return router
    if router is None:
        router = {"pixel_values": "image", "input_ids": "text"}.get(getattr(base_model, "main_input_name", ""))
        if router is None and _first_conv(base_model) is not None:
            router = "image"
    if router not in _BUILDERS:
        raise ValueError(
            f"router: found {router!r}, allowed are {sorted(_BUILDERS)}, a name given to register_router before, or a "
            "module that maps the model's main input to [B, num_experts] logits (hand it over again when loading: "
            "PeftModel.from_pretrained(base, folder, config=MoLAConfig(..., router=module)))"
        )
    build = _BUILDERS[router]
    if norm == "batch":
        return build(base_model, num_experts)
    if build not in (_image_router, _full_image_router):
        raise ValueError(
            f"router_norm: found {norm!r} with router={router!r}, allowed is 'batch' but for image routers"
        )
    return build(base_model, num_experts, norm=norm)


def in_dtype_of(router: nn.Module, value: Tensor) -> Tensor:
    """A router's input in the dtype of its parameters, which need not be that of the base model; ids stay integers."""
    parameter = next((one for one in router.parameters() if one.is_floating_point()), None)
    return value if parameter is None or not value.is_floating_point() else value.to(parameter.dtype)


def run(module: nn.Module, value: Tensor) -> Tensor:
    """A router's output, or a projection's, whatever the dtype of its input.

    FSDP2 casts weights for a forward pass and leaves the statistics of a BatchNorm: then all is done in their dtype.
    """
    statistics = next((one.dtype for one in module.buffers() if one.is_floating_point()), None)
    weights = {name: one for name, one in module.named_parameters() if one.is_floating_point()}
    if statistics is None or all(one.dtype == statistics for one in weights.values()):
        return module(in_dtype_of(module, value))
    cast = {name: one.to(statistics) for name, one in weights.items()}
    output: Tensor = functional_call(module, cast, value.to(statistics) if value.is_floating_point() else value)
    return output


# ------------------------------------------------------------------------------------------------ images
class ImageRouter(nn.Module):
    """The authors' router: a residual network of three stages (widths 16, 32, 64; three basic blocks each).

    Args:
        in_channels: channels of the image.
        num_experts: E.
        max_size: larger images are area-averaged to at most this many pixels a side; `None` keeps them (the authors'
            way, not free at 224 x 224).
        norm: `"batch"`, the authors': in training a sample's logits depend on the others in its process's batch;
            `"layer"`: over channels and pixels of every sample, so that they are the same in any batch.
    """

    def __init__(
        self,
        in_channels: int,
        num_experts: int,
        max_size: int | None = 32,
        norm: Literal["batch", "layer"] = "batch",
    ) -> None:
        super().__init__()
        self.max_size = max_size
        make_norm: Callable[[int], nn.Module] = nn.BatchNorm2d if norm == "batch" else partial(nn.GroupNorm, 1)
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), make_norm(16), nn.ReLU())
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.blocks = nn.Sequential(*(_BasicBlock(*pair, make_norm) for pair in pairwise(widths)))
        self.head = nn.Linear(64, num_experts)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, E]`."""
        x = in_dtype_of(self, pixel_values)
        if self.max_size is not None and max(x.shape[-2:]) > self.max_size:
            height, width = (min(side, self.max_size) for side in x.shape[-2:])
            x = F.interpolate(x, size=(height, width), mode="area")
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, make_norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stride = 1 if in_channels == out_channels else 2
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, self.stride, padding=1, bias=False)
        self.norm1 = make_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = make_norm(out_channels)
        self.extra_channels = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride == 2:  # a shortcut without parameters: every second pixel, zero channels on both sides
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra_channels, self.extra_channels))
        return F.relu(out + x)


def _first_conv(model: nn.Module) -> nn.Conv2d | None:
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)


def _image_router(base_model: nn.Module, num_experts: int, **options: Any) -> nn.Module:
    config = getattr(base_model, "config", None)
    channels = getattr(config, "num_channels", None)
    if channels is None and (conv := _first_conv(base_model)) is not None:
        channels = conv.in_channels
    return ImageRouter(channels or 3, num_experts, **options)


def _full_image_router(base_model: nn.Module, num_experts: int, **options: Any) -> nn.Module:
    return _image_router(base_model, num_experts, max_size=None, **options)


# ------------------------------------------------------------------------------------------------ text
class TextRouter(nn.Module):
    """Mean input embedding of the non-padding tokens, then a two-layer perceptron."""

    uses_embeddings = True

    def __init__(self, embedding_dim: int, num_experts: int, hidden_dim: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embedding_dim)
        self.hidden = nn.Linear(embedding_dim, hidden_dim)
        self.head = nn.Linear(hidden_dim, num_experts)

    def forward(self, embedding: Tensor) -> Tensor:
        """`[B, width]` to logits `[B, E]`."""
        return self.head(F.gelu(self.hidden(self.norm(in_dtype_of(self, embedding)))))


def mean_embedding(base_model: Any, inputs: dict[str, Any]) -> Tensor:
    """Mean of the input embeddings over non-padding tokens, `[B, width]` in float32, without gradient.

    Raises:
        ValueError: a mask from which padding cannot be told, one of pairs of tokens for example.
    """
    embedded = inputs.get("inputs_embeds")
    with torch.no_grad():
        if embedded is None:
            embedded = base_model.get_input_embeddings()(inputs["input_ids"])
        mask = inputs.get("attention_mask")
        tokens = embedded.shape[:-1]  # with an axis of its own for the choices of a multiple-choice model
        if mask is None:
            mask = torch.ones(tokens, device=embedded.device)
        if not isinstance(mask, Tensor) or mask.shape != tokens:
            found = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"attention_mask: found {found}, allowed with a router that reads text is one flag per token, "
                f"{tuple(tokens)}, or None"
            )
        embedded, mask = embedded.flatten(1, -2), mask.to(torch.float32).flatten(1)[..., None]
        return ((embedded.float() * mask).sum(1) / mask.sum(1).clamp(min=1)).detach()


def _text_router(base_model: Any, num_experts: int) -> nn.Module:
    return TextRouter(base_model.get_input_embeddings().weight.shape[-1], num_experts)


register_router("image", _image_router)
register_router("image-full", _full_image_router)
register_router("text", _text_router)
