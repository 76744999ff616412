"""Options of dataclasses: what a field's type says is what its value is checked against."""

import inspect
import math
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import numpy as np


class Bounds(NamedTuple):
    """Where a number has to lie: `Annotated[float, Bounds(at_least=0)]`.

    Args:
        at_least, above, at_most, below: None is no bound on that side.
        infinite: whether infinity is a number, too.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    infinite: bool = False

    def admit(self, value: float) -> bool:
        """Whether a number lies within."""
        return (
            (math.isfinite(value) or (self.infinite and not math.isnan(value)))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low, high = (next((bound for bound in pair if bound is not None), None) for pair in (self[:2], self[2:4]))
        signs = (">=" if self.above is None else ">", "<=" if self.below is None else "<")
        if low is not None and high is not None:
            return f" in {'[' if self.above is None else '('}{low:g}, {high:g}{']' if self.below is None else ')'}"
        bounds = zip(signs, (low, high), strict=True)
        return "".join(f" {sign} {bound:g}" for sign, bound in bounds if bound is not None)


#: numbers of options
NonNegative = Annotated[float, Bounds(at_least=0)]
Positive = Annotated[float, Bounds(above=0)]
Share = Annotated[float, Bounds(above=0, at_most=1)]
ShareOrZero = Annotated[float, Bounds(at_least=0, at_most=1)]
Count = Annotated[int, Bounds(at_least=1)]


def check_fields(instance: Any, kind: type) -> None:
    """Check the fields of a dataclass that are options: those that `kind` and mixins derived from it alone declare.

    A `Literal` names its values; numbers are finite (but for `Bounds(infinite=True)`) and within their bounds, and
    those of numpy are numbers, but bool and text are not; types that say nothing of values fit all.

    Raises:
        ValueError: a field with another value; it names field, value and what is allowed.
    """
    own: Any = type(instance)  # mypy takes a class for unhashable
    for name, annotation in _annotations(own, kind).items():
        check_value(name, getattr(instance, name), annotation)


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Check one value, called `name`, against a type, as `check_fields` does.

    Raises:
        ValueError: as there.
    """
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    checks = [_fits(value, kind) for kind in kinds]
    if not any(fits for fits, _ in checks):
        allowed = ", ".join(text for _, text in sorted(checks, key=lambda pair: pair[1] != "None"))
        raise ValueError(f"{name}: found {value!r}, allowed are {allowed}")


@cache
def _annotations(instance_kind: Any, kind: Any) -> dict[str, Any]:
    """Of classes that are made of options alone: a TrainingArguments that has them may have fields of any type."""
    annotations: dict[str, Any] = {}
    for base in reversed(instance_kind.__mro__):
        if issubclass(base, kind) and all(issubclass(one, kind) or issubclass(kind, one) for one in base.__mro__):
            annotations |= inspect.get_annotations(base, eval_str=True)
    return annotations


def _fits(value: Any, kind: Any) -> tuple[bool, str]:
    """Whether a value is of a type, and what is, in words."""
    bounds = Bounds()
    if get_origin(kind) is Annotated:
        kind, bounds = get_args(kind)[:2]
    if kind is NoneType:
        return value is None, "None"
    if get_origin(kind) is dict:
        checks = [_fits(item, get_args(kind)[1]) for item in value.values()] if isinstance(value, dict) else []
        fits = isinstance(value, dict) and all(isinstance(key, str) for key in value) and all(fit for fit, _ in checks)
        return fits, f"names with {_fits(None, get_args(kind)[1])[1]}"
    if get_origin(kind) is Literal:
        return value in get_args(kind), ", ".join(map(repr, get_args(kind)))
    if kind is bool:
        return isinstance(value, bool | np.bool_), "True, False"
    if kind is str:
        return isinstance(value, str), "text"
    if kind not in (int, float):
        return True, str(kind)
    number: Any = Integral if kind is int else Real
    fits = isinstance(value, number) and not isinstance(value, bool)
    finite = "finite " if fits and not math.isfinite(value) else ""
    return fits and bounds.admit(value), f"{finite}{'integers' if kind is int else 'numbers'}{bounds}"
