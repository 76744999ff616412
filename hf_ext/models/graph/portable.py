"""Shared parts of models that are made of other models: configurations, labels, saving with their code.

The same file in every model's folder, since a folder travels to the Hub alone.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig

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
