"""Checks of a repo before it is loaded: no pickles, complete files, shapes that match the configuration.

peft reads the configuration, makes the adapter's layers from it, and only then looks for the weights, which it would
take from a pickle too. So our configuration records where it was read, and the tuner looks there before it makes
layers: whatever makes a parameter first asks for a tensor of its name and shape.
"""

import copy
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import file_exists, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from hf_ext.adapters.mola.config import MoLAConfig

#: called with a parameter's name and shape before it is made; raises ValueError if the weights hold no such tensor
Expect = Callable[[str, Sequence[int]], None]
_SOURCE = "_read_from"
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class _Source:
    """Where a configuration was read, and which tensors it implied there."""

    name: str
    subfolder: str | None
    download: dict[str, Any]
    sizes: tuple[Any, ...]


class SavedShapes:
    """The shapes of the tensors in an adapter's file; each tensor is for one parameter."""

    def __init__(self, shapes: dict[str, tuple[int, ...]] | None = None, name: str = "") -> None:
        self._unused = shapes
        self._name = name

    def take(self, module: str, parameter: str, shape: Sequence[int]) -> None:
        """Ask for the tensor of a parameter that is about to be made; without a file, nothing is asked.

        Raises:
            ValueError: there is none, or it has another shape.
        """
        if self._unused is None:
            return
        key, shape = f"{_PEFT_PREFIX}{module}.{parameter}", tuple(shape)
        saved = self._unused.pop(key, None)
        if saved is None:
            # peft and transformers rename paths while loading (an older release's, `key_mapping`), but not a layer's
            # own name: any tensor of that name and shape will do, as long as there is one for every such layer
            end = f".{module.rpartition('.')[2]}.{parameter}"
            renamed = (one for one, other in self._unused.items() if other == shape and f".{one}".endswith(end))
            saved = self._unused.pop(next(renamed, ""), None)
        if saved != shape:
            what = f"no {key!r}" if saved is None else f"{key!r} of shape {saved}"
            raise ValueError(
                f"{SAFETENSORS_WEIGHTS_NAME}: found {what} in {self._name!r}, allowed is one of shape {shape}, as "
                "its configuration and the base model say"
            )


def check_source(config: MoLAConfig) -> SavedShapes:
    """Check the weights of a configuration that was read from a folder or the Hub.

    Nothing is done for one that was made in Python. One that was changed after it was read, or is now for another base
    model, is for an adapter yet to be trained, and not compared with the file.

    Raises:
        ValueError: weights as a pickle only, a broken file, or a download that is not what the Hub announced.
    """
    source: _Source | None = getattr(config, _SOURCE, None)
    path = _weights_file(source) if source is not None else None
    if source is None or path is None:
        return SavedShapes()
    shapes = _shapes(path, source.name)
    return SavedShapes(shapes, source.name) if _sizes(config) == source.sizes else SavedShapes()


def recording_source(original: Callable[..., Any]) -> Callable[..., Any]:
    """`PeftConfigMixin.from_pretrained` that records in a configuration of ours where it was read."""

    def from_pretrained(cls: type, name: Any, subfolder: str | None = None, **kwargs: Any) -> Any:
        config = original(cls, name, subfolder, **kwargs)
        if isinstance(config, MoLAConfig):
            download, *_ = PeftConfig._split_kwargs(kwargs)
            # of a configuration that is read as PeftConfig the base model is asked; MoLAConfig goes onto a given one
            if cls is PeftConfig and not os.path.isdir(name):
                _check_base_model(config, str(name))
            source = _Source(str(name), subfolder, download, _sizes(config))
            setattr(config, _SOURCE, source)
        return config

    return from_pretrained


def _sizes(config: MoLAConfig) -> tuple[Any, ...]:
    """All options that decide which tensors there are, and their shapes."""
    sizes = (config.num_experts, config.r, config.conv_form, config.twd_dim, config.num_tasks)
    layers = (config.target_modules, config.exclude_modules, config.layers_to_transform, config.layers_pattern)
    others = (config.base_model_name_or_path, config.routing, config.uses_twd, config.rank_pattern, config.task_heads)
    return copy.deepcopy((sizes, layers, others))


def _check_base_model(config: MoLAConfig, repo: str) -> None:
    base = config.base_model_name_or_path
    if base is None:
        return
    paths = (PurePosixPath(base), PureWindowsPath(base))
    if any(path.is_absolute() or path.drive or ".." in path.parts for path in paths) or base.startswith("~"):
        raise ValueError(
            f"base_model_name_or_path: found the path {base!r} in {repo!r}, allowed in a repo is the Hub id of a model"
        )


def _weights_file(source: _Source) -> Path | None:
    """The safetensors file of an adapter, downloaded if need be; None if there are no weights at all."""
    if os.path.isdir(source.name):
        folder = Path(source.name, source.subfolder or "")
        if (folder / SAFETENSORS_WEIGHTS_NAME).exists():
            return folder / SAFETENSORS_WEIGHTS_NAME
        pickled = (folder / WEIGHTS_NAME).exists()
    else:
        try:
            return _download(source)
        except EntryNotFoundError:
            pickled = _is_on_hub(source, WEIGHTS_NAME)
    if pickled:
        found = f"found a pickle in {source.name!r}"
        raise ValueError(f"{WEIGHTS_NAME}: {found}, allowed are weights in {SAFETENSORS_WEIGHTS_NAME} only")
    return None


def _download(source: _Source) -> Path:
    """The weights in the cache, with the checksum that the Hub gave; the client itself compares lengths only."""
    options = {"subfolder": source.subfolder} | _without(source.download, "subfolder")
    path = Path(hf_hub_download(source.name, SAFETENSORS_WEIGHTS_NAME, **options))
    if not _has_its_checksum(path) and not (HF_HUB_OFFLINE or options.get("local_files_only")):
        path = Path(hf_hub_download(source.name, SAFETENSORS_WEIGHTS_NAME, **options | {"force_download": True}))
    if not _has_its_checksum(path):
        raise ValueError(
            f"{SAFETENSORS_WEIGHTS_NAME}: found other bytes in {source.name!r} than its checksum says, allowed is a "
            "whole download (force_download=True makes a new one)"
        )
    return path


def _has_its_checksum(path: Path) -> bool:
    """Whether a file of the cache has the SHA-256 that its name is, as that of every large file."""
    name = path.resolve().name
    if not re.fullmatch(r"[0-9a-f]{64}", name):
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == name


def _is_on_hub(source: _Source, name: str) -> bool:
    options = {key: source.download[key] for key in ("revision", "repo_type") if key in source.download}
    name = f"{source.subfolder}/{name}" if source.subfolder else name
    if HF_HUB_OFFLINE or source.download.get("local_files_only"):
        cache = source.download.get("cache_dir")
        return isinstance(try_to_load_from_cache(source.name, name, cache_dir=cache, **options), str)
    return file_exists(source.name, name, token=source.download.get("token"), **options)


def _without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def _shapes(path: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors, from the header, which safetensors holds against the size of the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{SAFETENSORS_WEIGHTS_NAME}: found a broken file in {name!r} ({error}), allowed is a whole one"
        ) from None
