"""Folders and Hub ids that arguments name, and errors of what is loaded from there."""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor


def check_place(argument: str, place: str | None) -> None:
    """Before a model is loaded from there, if anything is named.

    Raises:
        ValueError: what can only be a folder is none.
    """
    name = (place or "").removeprefix("hf_hub:").removeprefix("hf-hub:")
    if place and (name != place or _is_of_timm(place)):
        hub_id = name if "/" in name else f"timm/{name}"
        raise ValueError(
            f"{argument}: found {place!r}, a name of timm's, allowed is {hub_id!r}, its Hub id, which "
            "TimmWrapperForImageClassification loads"
        )
    if place and (Path(place) / "adapter_config.json").is_file() and not (Path(place) / "config.json").is_file():
        raise ValueError(
            f"{argument}: found an adapter in {place!r}, allowed is a whole model, such as its base model"
        )
    if place and (place.startswith((".", "/", "~")) or place.count("/") > 1) and not Path(place).is_dir():
        raise ValueError(f"{argument}: found {place!r}, which is no folder, allowed is a folder or a Hub id")


def _is_of_timm(place: str) -> bool:
    """Whether a name is of timm's registry: `resnet18.a1_in1k`; without timm, whether it looks like that."""
    if "/" in place or Path(place).exists():
        return False
    if importlib.util.find_spec("timm") is None:
        return re.fullmatch(r"\w+\.\w+", place) is not None
    return bool(importlib.import_module("timm").is_model(place))


@contextmanager
def naming_the_models(model: Any) -> Iterator[None]:
    """For errors of loading models from files that nobody has checked.

    Raises:
        ValueError: with the arguments that name them, in place of whatever a configuration of the wrong types leads
            to; errors that say what is wrong stay.
    """
    try:
        yield
    except Exception as error:
        if type(error) is ValueError or isinstance(error, (OSError, ImportError)):
            raise
        names = ("model_name_or_path", "teacher_model", "vision_model", "text_model")
        given = ", ".join(f"{name} {place!r}" for name in names if (place := getattr(model, name, None)))
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(f"{given}: found a model that cannot be loaded ({reason}), allowed are whole ones") from error


@contextmanager
def naming_the_processor(argument: str, place: str) -> Iterator[None]:
    """For errors of loading what prepares images, from a place that an argument names.

    Raises:
        ValueError: with both.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{argument}: found {place!r} without an image processor, allowed is a model with one "
            "(preprocessor_config.json), or data with a column pixel_values"
        ) from error


@contextmanager
def naming_the_images(argument: str, images: str) -> Iterator[None]:
    """For errors of a model that an argument names, or of its processor, with images as described.

    Raises:
        ValueError: with both, and what went wrong.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{argument}: found a model that fails with images of {images} ({reason}), allowed is one that takes them"
        ) from error


def shape_of(pixel_values: Tensor) -> str:
    """Of one image, to be read."""
    return f"shape {tuple(pixel_values.shape[1:])}"
