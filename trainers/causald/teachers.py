"""Teachers: models, saved folders or Hub ids; one at a time on the device, and none when the student trains."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from hf_ext.trainers.passes import evaluation_mode

#: of a configuration, what says nothing of what a model computes
_NOT_COMPUTED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map")


class Teacher:
    """A teacher as the user gave it.

    Args:
        source: a recommender, or the folder or Hub id of a saved one.
        number: its place in the list, from 0.

    Raises:
        ValueError: something else, or nothing that can be read.
    """

    def __init__(self, source: Any, number: int) -> None:
        if isinstance(source, os.PathLike):
            source = os.fspath(source)
        if not isinstance(source, str | nn.Module):
            raise ValueError(
                f"teachers: found a {type(source).__name__} in place {number}, allowed are models, folders of saved "
                "ones and Hub ids"
            )
        self.source, self.number = source, number
        self.config = self._read_config()

    def _read_config(self) -> Any:
        if isinstance(self.source, nn.Module):
            return getattr(self.source, "config", None)
        try:
            return AutoConfig.from_pretrained(self.source)
        except (OSError, ValueError) as error:
            raise ValueError(f"teachers: found no model at {self.source!r}, allowed is one: {error}") from error

    @property
    def words(self) -> str:
        """As an error calls it."""
        kind = getattr(self.config, "architecture", None) or type(self.source).__name__
        where = f" of {self.source}" if isinstance(self.source, str) else ""
        return f"teacher {self.number} ({kind}{where})"

    @property
    def architecture(self) -> str:
        return str(getattr(self.config, "architecture", None) or type(self.source).__name__)

    @property
    def has_direct_path(self) -> bool:
        return bool(getattr(self.config, "direct_rank", 0))

    @contextmanager
    def on(self, device: torch.device) -> Iterator[Any]:
        """The model on a device, in evaluation mode; afterwards where and as it was, or gone if it was read."""
        if isinstance(self.source, str):
            yield AutoModel.from_pretrained(self.source).to(device).eval()
            return
        before = next((weight.device for weight in self.source.parameters()), device)
        with evaluation_mode(self.source):
            try:
                yield self.source.to(device)
            finally:
                self.source.to(before)


def check_teacher(teacher: Teacher, num_items: int) -> None:
    """Refuse a teacher that cannot score the student's items.

    Raises:
        ValueError: no recommender, or one of another number of items.
    """
    found = getattr(teacher.config, "num_items", None)
    if found is None:
        raise ValueError(f"teachers: found {teacher.words}, allowed are recommenders, whose config has num_items")
    if found != num_items:
        raise ValueError(f"teachers: found {found} items in {teacher.words}, allowed are {num_items}, the model's")


def check_items(teacher: Teacher, model: Any, items: Any) -> None:
    """Refuse a teacher whose rows are other items than the student's, where both say which.

    Raises:
        ValueError: it names the first row that differs.
    """
    known = getattr(model, "items", None)
    if known is None or items is None:
        return
    pairs = zip(known.ids, items.ids, strict=False)
    different = next((row for row, (one, other) in enumerate(pairs, 1) if one != other), None)
    if different is not None:
        raise ValueError(
            f"teachers: found {known.ids[different - 1]!r} in row {different} of {teacher.words}, allowed is "
            f"{items.ids[different - 1]!r}, the model's item there"
        )


def identity_of(teacher: Teacher, model: Any) -> dict[str, str]:
    """What a teacher computes by: its configuration, and the SHA-256 of its weights and buffers."""
    config = teacher.config.to_dict() if hasattr(teacher.config, "to_dict") else {}
    config = {name: value for name, value in config.items() if name not in _NOT_COMPUTED}
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        flat = value.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"config": json.dumps(config, sort_keys=True, default=str), "weights": digest.hexdigest()}
