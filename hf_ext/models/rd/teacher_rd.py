"""The teacher of an RD model: frozen, in evaluation mode, its parameters not among the model's."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from .configuration_rd import RDConfig

Teacher = nn.Module | Callable[[Tensor], Any]


class RDTeacher:
    """A frozen teacher, from images to features.

    It is no `nn.Module`, so that its parameters are in no state dict, optimiser, checkpoint, gradient averaging or
    adapter of the model that has it. It moves to the device of the images with its first batch; its dtype stays.

    Args:
        teacher: a transformers model, a timm model, another module or a function of pixel values; or a name or path
            for `AutoModel.from_pretrained`. A module is frozen and put into evaluation mode.
        revision: of a repository.

    Raises:
        ValueError: none of these.
    """

    def __init__(self, teacher: Teacher | str | os.PathLike[str], revision: str | None = None) -> None:
        self.name: str | None = None
        self.revision = revision
        if isinstance(teacher, (str, os.PathLike)):
            self.name = os.fspath(teacher)
            teacher = _loaded(self.name, revision or "main")
        if not callable(teacher):
            raise ValueError(
                f"teacher: found {type(teacher).__name__}, allowed are a model, a function of pixel values "
                "and a name or path"
            )
        inner = getattr(teacher, "vision_model", None)  # of a model of images and texts, what sees images
        if isinstance(teacher, PreTrainedModel) and isinstance(inner, nn.Module):
            self.name, teacher = self.name or teacher.name_or_path or None, inner
        self.call: Any = teacher
        if isinstance(teacher, nn.Module):
            teacher.requires_grad_(False).eval()
        if isinstance(teacher, PreTrainedModel):
            self.name = self.name or teacher.name_or_path or None
        #: of the images that it takes, as far as a model says so; no cached property, whose lock no graph has
        self.channels: int | None = self._said_channels()

    @property
    def kind(self) -> str:
        if isinstance(self.call, PreTrainedModel):
            return "transformers"
        if _is_timm(self.call):
            return "timm"
        return "module" if isinstance(self.call, nn.Module) else "callable"

    def width(self) -> int:
        """Width of its vectors, from a forward pass: configurations do not tell.

        Raises:
            ValueError: not a model of transformers or timm, or one that says nothing of the images it takes.
        """
        config: Any = getattr(self.call, "config", None)
        known: dict[str, Any] = getattr(config or self.call, "pretrained_cfg", None) or {}
        default = known.get("input_size", (3, 224, 224))[1:]
        size = getattr(config, "image_size", None) or default
        height, width = (size, size) if isinstance(size, int) else size
        if self.kind not in ("transformers", "timm"):
            raise ValueError(
                f"teacher_width: found none with a {self.kind} as teacher, allowed is its features' width"
            )
        weight = next(self.call.parameters())
        pixels = torch.zeros(1, self.channels or 3, height, width, device=weight.device)
        return self.features(pixels, maps=False).flatten(1).shape[1]

    def _said_channels(self) -> int | None:
        """Of timm, its first convolution says so."""
        config: Any = getattr(self.call, "config", None)
        known: dict[str, Any] = getattr(config or self.call, "pretrained_cfg", None) or {}
        said = getattr(config, "num_channels", None) or known.get("input_size", (None,))[0]
        first = known.get("first_conv")
        if self.kind != "timm" or said is None or not isinstance(first, str):
            return said
        taken = getattr(self.call.get_submodule(first), "in_channels", said)
        # a first convolution may also see places of an image as channels
        return said if taken == said else None if taken % said == 0 else int(taken)

    @torch.no_grad()
    def features(self, pixel_values: Tensor, *, maps: bool) -> Tensor:
        """Features of images, vectors `[B, W]` or `[B, W, 1, 1]`, or maps `[B, W, H, W]`, on the images' device.

        Images of one channel become as many equal ones as the teacher takes.

        Raises:
            ValueError: images of other channels, or an output without features of that form.
        """
        teacher, inputs = self.call, self._in_its_channels(pixel_values)
        if isinstance(teacher, nn.Module):
            if teacher.training:  # somebody trained it meanwhile
                teacher.eval()
            weight = next(teacher.parameters(), None)
            if weight is not None:
                if weight.device != inputs.device and not hasattr(teacher, "hf_device_map"):
                    teacher.to(inputs.device)
                inputs = inputs.to(next(teacher.parameters()).device)
                inputs = inputs.to(weight.dtype) if weight.is_floating_point() else inputs
        if self.kind == "timm":
            features = teacher.forward_features(inputs)
            features = features if maps else teacher.forward_head(features, pre_logits=True)
        else:
            features = _read(teacher(inputs), maps)
        return features.to(pixel_values.device)

    def _in_its_channels(self, pixel_values: Tensor) -> Tensor:
        found, taken = pixel_values.shape[1] if pixel_values.ndim == 4 else None, self.channels
        if found is None or taken is None or found == taken:
            return pixel_values
        if found > 1:
            raise ValueError(f"teacher: found images of {found} channels, allowed are {taken}, which it takes, or 1")
        return pixel_values.expand(-1, taken, -1, -1)


def _is_timm(teacher: Any) -> bool:
    return isinstance(teacher, nn.Module) and hasattr(teacher, "forward_features") and hasattr(teacher, "forward_head")


def _loaded(name: str, revision: str) -> Any:
    """The bare model; without its pooler if the checkpoint has no weights for it, as that of a classifier may not."""
    model, loading = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True)
    missing = [key for key in loading["missing_keys"] if key.split(".")[0] != "pooler"]
    if missing:
        raise ValueError(f"teacher: found {name!r} without weights for {missing[0]!r}, allowed are whole models")
    if loading["missing_keys"]:
        model.pooler = None
    return model


def _read(output: Any, maps: bool) -> Tensor:
    """The features in a teacher's output: a tensor, or an output of transformers."""
    name = "last_hidden_state" if maps else "pooler_output"
    features = output if isinstance(output, Tensor) else getattr(output, name, None)
    if features is None and not maps and getattr(output, "last_hidden_state", torch.empty(0)).ndim == 3:
        features = output.last_hidden_state[:, 0]  # as classifiers without a pooler do
    if not isinstance(features, Tensor):
        raise ValueError(
            f"teacher: found an output of type {type(output).__name__} without {name}, allowed are a tensor and an "
            "output with it; give a function that picks its features otherwise"
        )
    return features


def teacher_view(pixel_values: Tensor, config: RDConfig) -> Tensor:
    """The student's pixel values `[B, C, H, W]` as the teacher expects them, on the same device.

    Single-channel images become as many channels as `teacher_mean` has.
    """

    def column(values: Any) -> Tensor:
        # filled on the device: copying a list there would wait for it
        return torch.cat([pixel_values.new_full((1, 1, 1, 1), value) for value in values], dim=1)

    if config.pixel_mean is not None and config.teacher_mean is not None:
        pixel_values = pixel_values * column(config.pixel_std) + column(config.pixel_mean)
    if config.teacher_size is not None and tuple(config.teacher_size) != tuple(pixel_values.shape[-2:]):
        size, dtype = list(config.teacher_size), pixel_values.dtype
        # in float32: not every half precision has this operation
        resized = F.interpolate(pixel_values.float(), size, mode="bilinear", align_corners=False, antialias=True)
        pixel_values = resized.to(dtype)
    if config.teacher_mean is not None:
        pixel_values = (pixel_values - column(config.teacher_mean)) / column(config.teacher_std)
    return pixel_values


def pixel_settings(processor: Any) -> dict[str, Any]:
    """Size, mean and standard deviation that an image processor prepares pixel values with, where that is known.

    Args:
        processor: of transformers, also one of a timm model; or None.

    Returns:
        Of `"size"` (height and width), `"mean"` and `"std"` those that are known.
    """
    timm_settings = getattr(processor, "data_config", None)
    if isinstance(timm_settings, dict):
        known = {"size": timm_settings["input_size"][-2:], "mean": timm_settings["mean"], "std": timm_settings["std"]}
        return {name: list(values) for name, values in known.items()}
    known = {"mean": [0.0], "std": [1.0]}  # for all channels
    if getattr(processor, "do_normalize", False):
        known = {"mean": list(processor.image_mean), "std": list(processor.image_std)}
    name = "crop_size" if getattr(processor, "do_center_crop", False) else "size"
    size = getattr(processor, name, None) or {}
    get = getattr(size, "get", lambda _: None)  # of an edge alone: of square images, as most students' are, the size
    height, width = (get(side) or get("shortest_edge") for side in ("height", "width"))
    return {**known, "size": [height, width]} if height and width else known
