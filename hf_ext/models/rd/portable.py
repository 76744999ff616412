"""Shared parts of models that are made of other models: configurations, loading, labels, saving with their code.

The same file in every model's folder, since a folder travels to the Hub alone.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

#: type of a configuration's numbers, which `as_number` checks: transformers' own check refuses those of numpy
Number = Any


def as_config(value: Any, name: str) -> PreTrainedConfig:
    """The configuration of a part, from one or from what was read from a file.

    By the type's own `from_dict`, which alone reads the classes of a timm model's configuration.

    Raises:
        ValueError: none, or of a type that transformers does not know.
    """
    if isinstance(value, PreTrainedConfig):
        return value
    kind = value.get("model_type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        given = value if kind is None else f"the model type {kind!r}"
        raise ValueError(f"{name}: found {given!r}, allowed is the configuration of a model that transformers knows")
    return CONFIG_MAPPING[kind].from_dict(dict(value))


def as_number(
    value: Any, name: str, *, at_least: float = -math.inf, above: float = -math.inf, integer: bool = False
) -> Any:
    """A number of a configuration as JSON knows it, int or float; numpy's are numbers, bool and text are not.

    Raises:
        ValueError: no number, not finite, or out of range.
    """
    is_number = isinstance(value, Integral if integer else Real) and not isinstance(value, bool)
    is_finite = is_number and -math.inf < value < math.inf
    if is_finite and value >= at_least and value > above:
        return int(value) if isinstance(value, Integral) else float(value)
    bound = f" >= {at_least:g}" if at_least > -math.inf else f" > {above:g}" if above > -math.inf else ""
    kind = "integers" if integer else "finite numbers" if is_number and not is_finite else "numbers"
    raise ValueError(f"{name}: found {value!r}, allowed are {kind}{bound}")


@contextlib.contextmanager
def carrying_code(model: Any, auto_classes: Mapping[str, type]) -> Iterator[None]:
    """While this lasts, `model.save_pretrained` copies the files that define it, so that it loads where they are not.

    Args:
        model: with a configuration.
        auto_classes: the classes that `trust_remote_code=True` finds, by Auto class.
    """
    kind, config = type(model), type(model.config)
    classes, auto_map = (kind._auto_class, config._auto_class), model.config.__dict__.get("auto_map")
    main = next((name for name, model_class in auto_classes.items() if model_class is kind), None)
    if main is None:  # a class derived from one of them, in files of its own
        yield
        return
    kind._auto_class, config._auto_class = main, "AutoConfig"
    model.config.auto_map = {
        name: f"{model_class.__module__.rpartition('.')[2]}.{model_class.__name__}"
        for name, model_class in auto_classes.items()
    }
    try:
        yield
    finally:
        kind._auto_class, config._auto_class = classes
        model.config.auto_map = auto_map
        if auto_map is None:
            del model.config.auto_map


def check_labels(labels: Tensor | None) -> Tensor:
    """The labels.

    Raises:
        ValueError: they are not classes, int64 `[B]`.
    """
    if labels is None or labels.is_floating_point() or labels.ndim != 1:
        found = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"labels: found {found}, allowed are classes, int64 [B]")
    return labels


# ------------------------------------------------------------------------------------------------ loading
_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_COUNTS = ("num_batches_tracked", "position_ids", "relative_position_index")  # integers, whatever a model calls them


class LoadedWhole(PreTrainedModel):
    """A model that loads as it was saved, from safetensors alone, or not at all."""

    #: beginnings of names of a larger model's weights, which this one may leave in the file
    of_larger_models: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own.

        With `output_loading_info=True` weights that are missing or not known are only reported.

        Raises:
            ValueError: a file that is broken, weights that are missing or not known, NaN, infinite or not of a
                floating type, or negative variances; it names the first.
            OSError: no safetensors there. Others than these are not read.
        """
        if kwargs.get("use_safetensors", True) is not True:
            raise ValueError(
                f"use_safetensors: found {kwargs['use_safetensors']!r}, allowed is True: no pickle is read"
            )
        reported = bool(kwargs.pop("output_loading_info", False))
        options = {**kwargs, "use_safetensors": True, "output_loading_info": True}
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        except SafetensorError as error:
            raise ValueError(f"{pretrained_model_name_or_path}: found broken safetensors ({error})") from None
        model, report = loaded
        where = f"in the weights of {pretrained_model_name_or_path}"
        if not reported:
            unknown = [key for key in report["unexpected_keys"] if not key.startswith(cls.of_larger_models)]
            for keys, what in (
                (report["missing_keys"], "no tensor"),
                (unknown, "a tensor that no part of the model has"),
            ):
                if keys:
                    name = min(keys)
                    raise ValueError(
                        f"{name}: found {what} {where}, allowed are those of a {cls.__name__}, all of them"
                    )
        converted = getattr(model.config, "quantization_config", None) is not None
        if not converted and all(kwargs.get(name) is None for name in ("state_dict", "variant", "gguf_file")):
            hub = {name: kwargs[name] for name in _HUB if kwargs.get(name) is not None}
            for file in weight_files(pretrained_model_name_or_path, hub):
                check_types(model, file, where)
        check_values(model, where)
        return (model, report) if reported else model


def weight_files(place: Any, hub: Mapping[str, Any]) -> list[str]:
    """The files that a model was just loaded from, in a folder or in the cache of the Hub."""

    def find(name: str) -> str | None:
        found = cached_file(place, name, _raise_exceptions_for_missing_entries=False, **hub)
        return None if found is None else str(found)

    if place is None or (single := find(SAFE_WEIGHTS_NAME)) is None:
        index = None if place is None else find(SAFE_WEIGHTS_INDEX_NAME)
        if index is None:
            return []
        with open(index, encoding="utf-8") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
        return [path for name in names if (path := find(name)) is not None]
    return [single]


def check_types(model: nn.Module, file: str | os.PathLike[str], where: str) -> None:
    """Refuse integers and complex numbers in place of weights, which loading would convert."""
    whole = {name for name, value in model.state_dict().items() if not value.is_floating_point()}
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (no mapping)
            kind = tensors.get_slice(name).get_dtype()
            if not kind.startswith(("F", "BF")) and name not in whole and not name.endswith(_COUNTS):
                raise ValueError(f"{name}: found {kind} values {where}, allowed are those of a floating type")


def check_values(model: nn.Module, where: str) -> None:
    """Refuse weights that are NaN or infinite, and negative variances."""
    for name, value in model.state_dict().items():
        if not value.is_floating_point() or value.is_meta:
            continue
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: found NaN or infinite values {where}, allowed are finite ones")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise ValueError(f"{name}: found negative variances {where}, allowed are numbers >= 0")
