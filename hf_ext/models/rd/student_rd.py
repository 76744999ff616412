"""The student of an RD model: its last linear layer, the shared classifier; that layer's input; saving."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def find_classifier(student: PreTrainedModel, name: str | None = None) -> str:
    """Name of the student's classifier: the one linear layer outside its base model with an output per label.

    Args:
        student: an image classifier of transformers, also one that wraps a timm model.
        name: the layer's name, if it is known.

    Raises:
        ValueError: there is no such layer, or more than one.
    """
    linear = {path: module for path, module in student.named_modules() if isinstance(module, nn.Linear)}
    labels = student.config.num_labels
    if name is not None:
        if name not in linear or linear[name].out_features != labels:
            layer = _described(student, name)
            raise ValueError(
                f"student_classifier: found {layer}, allowed is a Linear with {labels} outputs, one a label"
            )
        return name
    heads = [path for path in head_names(student, linear) if linear[path].out_features == labels]
    if len(heads) != 1:
        last = [f"{path} with {linear[path].out_features} outputs" for path in heads or list(linear)[-1:]]
        raise ValueError(
            f"student: found {', '.join(last) or 'no linear layer'} in {type(student).__name__}, allowed is one "
            f"Linear at its end, with {labels} outputs, one a label; student_classifier names it if there are more"
        )
    return heads[0]


def _described(student: PreTrainedModel, name: str) -> str:
    module = dict(student.named_modules()).get(name)
    return f"{name!r}, " + ("which does not exist" if module is None else f"which is {module}")


def head_names(student: Any, linear: dict[str, nn.Linear]) -> list[str]:
    """Linear layers that may be the classifier: of a timm model those it says, else all outside the base model."""
    if hasattr(getattr(student, "timm_model", None), "get_classifier"):
        classifier = student.timm_model.get_classifier()
        heads = classifier if isinstance(classifier, (list, tuple)) else [classifier]
        inside = {id(module) for head in heads for module in head.modules()}  # a norm may come before it
        return [path for path, module in linear.items() if id(module) in inside]
    prefix = f"{student.base_model_prefix}."
    return [path for path in linear if prefix == "." or not path.startswith(prefix)]


def run_student(student: PreTrainedModel, classifier: nn.Module, pixel_values: Tensor, **kwargs: Any) -> Any:
    """The student's outputs and its features, `[B, D]`: what went into the classifier.

    Raises:
        ValueError: the classifier's inputs are not one vector an image.
    """
    caught: list[Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        outputs = student(pixel_values, **kwargs)
    finally:
        hook.remove()
    shapes = [tuple(features.shape) for features in caught]
    if len(caught) != 1 or caught[0].ndim != 2:
        raise ValueError(f"student: found inputs of its classifier of shapes {shapes}, allowed is one vector an image")
    return outputs, caught[0]


def save_student(student: Any, folder: str | os.PathLike[str], image_processor: Any = None) -> None:
    """Save an image classifier as its library does; one of timm in a form that transformers and timm both load.

    Args:
        student: of transformers, also one that wraps a timm model.
        folder: created if needed.
        image_processor: saved in the same folder; not of a timm model, whose own configuration has these settings.

    Raises:
        ValueError: a student with layers of peft, whose parameters an ordinary model does not have.
    """
    adapted = next((name for name, module in student.named_modules() if _is_of_peft(module)), None)
    if adapted is not None:
        raise ValueError(
            f"student: found {adapted!r}, a layer of peft, allowed is a student without adapters; merge_and_unload() "
            "of the model with the adapter gives one"
        )
    if hasattr(student, "timm_model"):
        _save_timm(student, Path(folder))
    else:
        student.save_pretrained(folder)
        if image_processor is not None:
            image_processor.save_pretrained(folder)


def _is_of_peft(module: nn.Module) -> bool:
    """Whether a layer, or one that it derives from, is of peft, which may not be installed."""
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)


def _save_timm(student: Any, folder: Path) -> None:
    try:  # a bare import would be asked of everyone who loads this file
        import timm
    except ImportError as error:
        raise ImportError("timm is not installed: pip install timm") from error
    names = [student.config.id2label[label] for label in range(student.config.num_labels)]
    labels = {"num_classes": len(names), "label_names": names}
    arguments = dict(student.config.model_args or {})
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as made:  # no link that lies in the folder is followed
        timm.models.save_for_hf(student.timm_model, made, {**labels, "model_args": arguments}, safe_serialization=True)
        path = Path(made) / "config.json"
        written = json.loads(path.read_text())
        # transformers builds the model with the number of classes and these arguments: it must not be in both
        written.pop("model_args", None)
        if arguments:
            written["model_args"] = arguments
        path.write_text(json.dumps(written, indent=2))
        for name in os.listdir(made):
            os.replace(Path(made) / name, folder / name)
