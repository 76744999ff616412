"""A federation's checkpoints: the global model, the strategy's own state and what was measured, after every round."""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from hf_ext._files import read_json
from hf_ext.trainers.federated.flower import Array, ArrayRecord

_KEPT = 2
_MODEL, _STRATEGY, _VALUES = "model.safetensors", "strategy.safetensors", "federation.json"


@dataclass(frozen=True)
class Checkpoint:
    """A federation after a round.

    Args:
        number: of the round.
        arrays: the global model, as it travels.
        tensors: of the strategy.
        values: of the strategy, and what was measured; JSON.
    """

    number: int
    arrays: ArrayRecord
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: str | os.PathLike[str], checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and delete all but the last two.

    It is written aside and takes its name last, so whoever is killed in between leaves the earlier ones.
    """
    folder = Path(folder)
    place = folder / f"round-{checkpoint.number}"
    aside = folder / f".round-{checkpoint.number}.{secrets.token_hex(8)}"
    for left in folder.glob(".round-*.*"):  # of whoever was killed
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        model = {name: np.asarray(array.numpy(), order="C") for name, array in checkpoint.arrays.items()}
        safetensors.numpy.save_file(model, aside / _MODEL)
        safetensors.numpy.save_file(dict(checkpoint.tensors), aside / _STRATEGY)
        values = {**checkpoint.values, "names": list(checkpoint.arrays)}
        (aside / _VALUES).write_text(json.dumps(values, indent=1, allow_nan=False))
        if place.exists():
            shutil.rmtree(place)
        os.replace(aside, place)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for number, old in sorted(_found(folder).items())[:-_KEPT]:
        if number < checkpoint.number:
            shutil.rmtree(old, ignore_errors=True)
    return place


def load_checkpoint(place: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: none, or one that is not whole.
    """
    place = Path(place)
    match = re.fullmatch(r"round-(\d+)", place.name)
    if match is None or not place.is_dir():
        raise ValueError(f"resume_from_checkpoint: found {str(place)!r}, allowed are folders round-N of a federation")
    try:
        values = read_json(place / _VALUES, "resume_from_checkpoint")
        model = safetensors.numpy.load_file(place / _MODEL)
        tensors = safetensors.numpy.load_file(place / _STRATEGY)
        arrays = {str(name): Array(np.asarray(model[name])) for name in values.pop("names")}
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"resume_from_checkpoint: found a broken {str(place)!r} ({error!r}), allowed is a whole one"
        ) from None
    return Checkpoint(int(match[1]), ArrayRecord(arrays), tensors, values)


def newest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Where the newest checkpoint of a folder lies."""
    found = _found(Path(folder))
    return found[max(found)] if found else None


def _found(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by the number of their round."""
    if not folder.is_dir():
        return {}
    matches = ((re.fullmatch(r"round-(\d+)", one.name), one) for one in folder.iterdir() if one.is_dir())
    return {int(match[1]): one for match, one in matches if match}


def as_json(value: Any) -> Any:
    """Metrics as JSON, which knows no number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value
