"""What comes from a repo is looked at before it is loaded: no pickles, whole files, sizes as the configuration says.

peft reads the configuration, makes the adapter's layers after it, and only then looks for weights, which it would
take from a pickle too. So a configuration of ours notes where it was read, and the tuner looks there before it makes
layers.
"""

import functools
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import file_exists, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftConfig
from peft.config import PeftConfigMixin
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from hf_ext.adapters.mola.config import MoLAConfig

_SOURCE = "_read_from"


@dataclass(frozen=True)
class _Source:
    """Where a configuration was read, and the sizes it said there."""

    name: str
    subfolder: str | None
    download: dict[str, Any]
    sizes: tuple[Any, ...]


def check_source(config: MoLAConfig) -> None:
    """Look at the weights beside a configuration that was read from a folder or the Hub.

    Nothing is done for one that was made in Python. One whose sizes were changed since it was read is for other
    weights, and not compared with these.

    Raises:
        ValueError: weights as a pickle only, a broken file, a download that is not what the Hub announced, or tensors
            of other sizes than the configuration says.
    """
    source: _Source | None = getattr(config, _SOURCE, None)
    path = _weights(source) if source is not None else None
    if source is not None and path is not None:
        shapes = _shapes(path, source.name)
        if _sizes(config) == source.sizes:
            _check_sizes(config, shapes, source.name)


def note_sources() -> None:
    """Let configurations of ours note where peft reads them. Idempotent."""
    original: Any = PeftConfigMixin.from_pretrained.__func__  # type: ignore[attr-defined]
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
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

    PeftConfigMixin.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment, method-assign]


def _sizes(config: MoLAConfig) -> tuple[Any, ...]:
    ranks = tuple((config.rank_pattern or {}).items())
    return config.num_experts, config.r, ranks, config.conv_form, config.twd_dim, config.num_tasks


def _check_base_model(config: MoLAConfig, repo: str) -> None:
    base = config.base_model_name_or_path
    if base is None:
        return
    paths = (PurePosixPath(base), PureWindowsPath(base))
    if any(path.is_absolute() or path.drive or ".." in path.parts for path in paths) or base.startswith("~"):
        raise ValueError(
            f"base_model_name_or_path: found the path {base!r} in {repo!r}, allowed in a repo is the Hub id of a model"
        )


def _weights(source: _Source) -> Path | None:
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
    """Whether a file of the cache is what its name says: large files are kept under their SHA-256."""
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


def _shapes(path: Path, name: str) -> dict[str, list[int]]:
    """Shapes of all tensors, from the header, which safetensors holds against the size of the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{SAFETENSORS_WEIGHTS_NAME}: found a broken file in {name!r} ({error}), allowed is a whole one"
        ) from None


def _check_sizes(config: MoLAConfig, shapes: dict[str, list[int]], name: str) -> None:
    experts = {key: shape for key, shape in shapes.items() if key.endswith((".mola_A", ".mola_B"))}
    if not experts:
        raise ValueError(
            f"{SAFETENSORS_WEIGHTS_NAME}: found no MoLA weights in {name!r}, allowed are a MoLA adapter's"
        )
    ranks = {config.r, *(config.rank_pattern or {}).values()}
    for key, shape in experts.items():
        rank = shape[1 if key.endswith("A") else -1] if len(shape) >= 3 else 0
        # the authors' form of a k x k convolution has k times the rank
        ranks_fit = any(rank % r == 0 for r in ranks) if config.conv_form == "loralib" else rank in ranks
        if len(shape) < 3 or shape[0] != config.num_experts or not rank or not ranks_fit:
            raise ValueError(
                f"{SAFETENSORS_WEIGHTS_NAME}: found {key!r} of shape {tuple(shape)} in {name!r}, allowed are "
                f"num_experts={config.num_experts} experts of rank {', '.join(map(str, sorted(ranks)))}, as its "
                "configuration says"
            )
    expected = {"mola_projection.weight": config.twd_dim, "mola_head_weight": config.num_tasks or config.num_experts}
    for key, shape in shapes.items():
        size = expected.get(next((end for end in expected if key.endswith(f".{end}")), ""))
        if size is not None and shape[:1] != [size]:
            raise ValueError(
                f"{SAFETENSORS_WEIGHTS_NAME}: found {key!r} of shape {tuple(shape)} in {name!r}, allowed is a first "
                f"size of {size}, as its configuration says"
            )


note_sources()
