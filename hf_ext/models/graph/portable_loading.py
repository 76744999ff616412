"""Models that load as they were saved, or not at all.

The same file in every model's folder, since a folder travels to the Hub alone; apart from `portable.py`, which
configurations import before transformers knows its models.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

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
