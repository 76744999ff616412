"""How an RD model leaves home: its student alone, as an ordinary model, or the whole, with its code."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


def save_student(student: Any, folder: str | os.PathLike[str], image_processor: Any = None) -> None:
    """Save an image classifier as its library does; one of timm in a form that transformers and timm both load.

    Args:
        student: of transformers, also one that wraps a timm model.
        folder: created if needed.
        image_processor: saved beside it. One of a timm model is in the model's own configuration, and not needed.
    """
    if hasattr(student, "timm_model"):
        _save_timm(student, Path(folder))
    else:
        student.save_pretrained(folder)
        if image_processor is not None:
            image_processor.save_pretrained(folder)


def _save_timm(student: Any, folder: Path) -> None:
    try:  # a bare import would be asked of everyone who loads this file
        import timm
    except ImportError as error:
        raise ImportError("timm is not installed: pip install timm") from error
    names = [student.config.id2label[label] for label in range(student.config.num_labels)]
    labels = {"num_classes": len(names), "label_names": names}
    arguments = dict(student.config.model_args or {})
    timm.models.save_for_hf(
        student.timm_model, str(folder), {**labels, "model_args": arguments}, safe_serialization=True
    )
    path = folder / "config.json"
    written = json.loads(path.read_text())
    # transformers builds the model with the number of classes and these arguments: it must not be in both
    written.pop("model_args", None)
    if arguments:
        written["model_args"] = arguments
    path.write_text(json.dumps(written, indent=2))


@contextmanager
def loadable_by_everyone(model: PreTrainedModel, auto_class: str) -> Iterator[None]:
    """Within it, saving `model` adds its code, with which `trust_remote_code=True` loads it anywhere.

    Registering a class for that is for the whole process, and its mark stays on the configuration: both are undone.
    """
    config = model.config
    kinds: tuple[Any, ...] = (type(config), type(model))
    before = [vars(kind).get("_auto_class") for kind in kinds]
    auto_map = getattr(config, "auto_map", None)
    try:
        type(config).register_for_auto_class()
        type(model).register_for_auto_class(auto_class)
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind._auto_class = value
        if auto_map is None:
            vars(config).pop("auto_map", None)
