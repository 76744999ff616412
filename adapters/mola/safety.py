"""Checks of a repo before it is loaded: no pickles, complete files, and in them what the configuration says.

peft and transformers read the configuration, make the adapter's layers from it, and only then look for the weights. So
the tuner looks there before it makes layers: whatever makes a parameter first asks for a tensor of its name and shape;
and again when the layers are there, and all that they need is known.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from huggingface_hub import file_exists, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import EntryNotFoundError
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_ext._files import read_json
from hf_ext.adapters.mola.config import MoLAConfig

#: called with a parameter's name and shape before it is made; raises ValueError if the weights hold no such tensor
Expect = Callable[[str, Sequence[int]], None]
_SOURCE = "_read_from"
#: what names of tensors start with in files
PEFT_PREFIX = "base_model.model."
_NEVER_NEGATIVE = (".running_var", ".num_batches_tracked")


@dataclass(frozen=True)
class Source:
    """Where an adapter is: a folder or a repo of the Hub, and the options to read it with."""

    name: str
    subfolder: str | None
    download: dict[str, Any]

    @classmethod
    def of(cls, name: Any, options: dict[str, Any]) -> "Source":
        """From the arguments of a call that loads an adapter; what has nothing to do with the place is left out."""
        download, *_ = PeftConfig._split_kwargs(options)
        return cls(str(name), download.get("subfolder"), _without(download, "subfolder"))


class SavedTensors:
    """The tensors in an adapter's file, each for one of the model's; without a file there is nothing to check."""

    def __init__(self, path: Path | None = None, name: str = "") -> None:
        self._path = path
        self._name = name
        self._shapes = {} if path is None else _shapes(path, name)
        self._unused = dict(self._shapes)

    @property
    def names(self) -> set[str]:
        """Of the tensors in the file."""
        return {key.removeprefix(PEFT_PREFIX) for key in self._shapes}

    def take(self, module: str, parameter: str, shape: Sequence[int]) -> None:
        """Ask for the tensor of a parameter that is about to be made.

        Raises:
            ValueError: there is none, or it has another shape.
        """
        if self._path is not None:
            self._take(self._unused, module, parameter, tuple(shape))

    def check(self, needed: Mapping[str, Tensor], embeddings: Iterable[Mapping[str, Tensor]] = ()) -> None:
        """Check that the file has the tensors of an adapter, all of them and no other, with values to compute with.

        Args:
            needed: the model's tensors by the names that they have in files.
            embeddings: further sets of tensors of which one may be there, as a whole: peft saves the embeddings of a
                resized vocabulary along, and no configuration says so.

        Raises:
            ValueError: one is missing or is one too many, or has another shape, another kind of dtype, values that are
                not finite or a negative variance.
        """
        if self._path is None:
            return
        unused = dict(self._shapes)
        found = {key: key for key, value in needed.items() if unused.get(key) == tuple(value.shape)}
        for key in found:
            del unused[key]
        for key, value in needed.items():
            if key not in found:
                module, _, parameter = key.removeprefix(PEFT_PREFIX).rpartition(".")
                found[key] = self._take(unused, module, parameter, tuple(value.shape))
        for more in embeddings:
            if unused and unused == {key: tuple(value.shape) for key, value in more.items()}:
                needed, found, unused = {**needed, **more}, {**found, **dict(zip(more, more, strict=True))}, {}
        if unused:
            raise ValueError(
                f"{SAFETENSORS_WEIGHTS_NAME}: found {len(unused)} tensors in {self._name!r} that are not of this "
                f"adapter ({min(unused)!r}, ...), allowed are those that its configuration says for this base model"
            )
        with safe_open(self._path, framework="pt") as file:
            for key, saved in found.items():
                if fault := _fault(saved, file.get_tensor(saved), needed[key].dtype):
                    raise ValueError(f"{SAFETENSORS_WEIGHTS_NAME}: found {saved!r} in {self._name!r} with {fault}")

    def _take(self, unused: dict[str, tuple[int, ...]], module: str, parameter: str, shape: tuple[int, ...]) -> str:
        """The name of a parameter's tensor in the file, which is used from now on."""
        key = f"{PEFT_PREFIX}{module}.{parameter}"
        if unused.get(key) == shape:
            del unused[key]
            return key
        name = None
        if key not in unused:
            # peft and transformers rename paths while loading (an older release's, `key_mapping`), but not a layer's
            # own name: any tensor of that name and shape will do, as long as there is one for every such layer
            end = f".{module.rpartition('.')[2]}.{parameter}"
            name = next((one for one, other in unused.items() if other == shape and f".{one}".endswith(end)), None)
        if name is None:
            what = f"{key!r} of shape {unused[key]}" if key in unused else f"no {key!r}"
            raise ValueError(
                f"{SAFETENSORS_WEIGHTS_NAME}: found {what} in {self._name!r}, allowed is one of shape {shape}, as "
                "its configuration and the base model say"
            )
        del unused[name]
        return name


def _fault(name: str, tensor: Tensor, dtype: torch.dtype) -> str | None:
    """What is wrong with the values of a tensor for one of a dtype, if anything is."""
    fits = tensor.is_floating_point() if dtype.is_floating_point else tensor.dtype == dtype
    if not fits:
        return f"dtype {tensor.dtype}, allowed is {'a floating point one' if dtype.is_floating_point else dtype}"
    values = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
    if not values.isfinite().all():
        return "NaN or infinite values, allowed are finite ones"
    if name.endswith(_NEVER_NEGATIVE) and (values < 0).any():
        return "negative values, allowed are values of at least 0"
    return None


def saved_tensors(source: Source) -> SavedTensors:
    """The tensors of the adapter in a folder or on the Hub, downloaded if need be.

    Raises:
        ValueError: no weights or as a pickle only, a broken file, or a download that is not what the Hub announced.
    """
    return SavedTensors(_weights_file(source), source.name)


def source_of(config: PeftConfig) -> Source | None:
    """Where a configuration was read; None for one that was made in Python."""
    return getattr(config, _SOURCE, None)


def checked_json(original: Callable[..., Any]) -> Callable[..., Any]:
    """`PeftConfigMixin.from_json_file`, of any adapter: a broken file is said to be one, and which."""

    def from_json_file(cls: type, path_json_file: Any, **kwargs: Any) -> Any:
        kind = read_json(path_json_file, CONFIG_NAME).get("peft_type")
        if kind is not None and kind not in list(PEFT_TYPE_TO_CONFIG_MAPPING):
            raise ValueError(
                f"{CONFIG_NAME}: found the peft_type {kind!r} in {str(path_json_file)!r}, allowed are "
                f"{', '.join(sorted(PEFT_TYPE_TO_CONFIG_MAPPING))}"
            )
        try:
            return original(cls, path_json_file, **kwargs)
        except ValueError as error:  # a byte order mark
            raise ValueError(f"{CONFIG_NAME}: found a broken {str(path_json_file)!r} ({error})") from None

    return from_json_file


def recording_source(original: Callable[..., Any]) -> Callable[..., Any]:
    """`PeftConfigMixin.from_pretrained` that records in a configuration of ours where it was read."""

    def from_pretrained(cls: type, name: Any, subfolder: str | None = None, **kwargs: Any) -> Any:
        config = original(cls, name, subfolder, **kwargs)
        if isinstance(config, MoLAConfig):
            source = Source.of(name, kwargs | {"subfolder": subfolder})
            if os.path.isdir(name):
                _check_folder(source)
            # of a configuration that is read as PeftConfig the base model is asked; MoLAConfig goes onto a given one
            elif cls is PeftConfig:
                _check_base_model(config, source.name)
            setattr(config, _SOURCE, source)
        return config

    return from_pretrained


def _check_folder(source: Source) -> None:
    """peft would read one part from a folder, and what is not there from the Hub repo of the same name."""
    folder = Path(source.name, source.subfolder or "")
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{CONFIG_NAME}: found none in the folder {str(folder)!r}, allowed is an adapter's folder")


def _check_base_model(config: MoLAConfig, repo: str) -> None:
    base = config.base_model_name_or_path
    if base is None:
        return
    paths = (PurePosixPath(base), PureWindowsPath(base))
    is_path = any(path.is_absolute() or path.drive or ".." in path.parts for path in paths) or base.startswith("~")
    if is_path or os.path.isdir(base):
        what = "path" if is_path else "name of a folder here,"
        raise ValueError(
            f"base_model_name_or_path: found the {what} {base!r} in {repo!r}, allowed in a repo is the Hub id of a "
            "model (a base model that is loaded already can be given to PeftModel.from_pretrained)"
        )


def _weights_file(source: Source) -> Path:
    """The safetensors file of an adapter, downloaded if need be."""
    if os.path.isdir(source.name):
        folder = Path(source.name, source.subfolder or "")
        if (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            return folder / SAFETENSORS_WEIGHTS_NAME
        pickled = (folder / WEIGHTS_NAME).exists()
    else:
        try:
            return _download(source)
        except EntryNotFoundError:
            pickled = _is_on_hub(source, WEIGHTS_NAME)
    name, found = (WEIGHTS_NAME, "a pickle") if pickled else (SAFETENSORS_WEIGHTS_NAME, "no such file")
    raise ValueError(
        f"{name}: found {found} in {source.name!r}, allowed are weights in {SAFETENSORS_WEIGHTS_NAME} only"
    )


def _download(source: Source) -> Path:
    """The weights in the cache, with the checksum that the Hub gave; the client itself compares lengths only."""
    options = {"subfolder": source.subfolder} | source.download
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


def _is_on_hub(source: Source, name: str) -> bool:
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
