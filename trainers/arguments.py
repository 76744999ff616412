"""The base of all methods' arguments: what a field's type says is what its value is checked against."""

import math
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

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


def option(default: Any, help: str) -> Any:
    """A field of `MethodArguments`; `help` is what `hf-ext train METHOD --help` prints, alone."""
    return field(default=default, metadata={"help": help})


@dataclass
class MethodArguments:
    """To be mixed with any TrainingArguments, with those of other methods, or parsed alone.

    A field's type says what it may be: a `Literal` names its values, numbers have to be finite and within their
    `Bounds`. What two fields allow together a subclass checks in `check_options`.

    Raises:
        ValueError: an option with another value; it names option, value and what is allowed.
    """

    def __post_init__(self) -> None:
        self.check_options()
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()

    def check_options(self) -> None:
        """Refuse values that cannot work. Cooperative: call `super().check_options()` first."""
        for name, annotation in _options(type(self)).items():
            _check(name, getattr(self, name), annotation)


def refuse_packing(args: Any, reason: str) -> None:
    """Refuse TRL's options that put several samples into one sequence.

    Raises:
        ValueError: one is on.
    """
    for name in ("packing", "padding_free"):
        if getattr(args, name, False):
            raise ValueError(f"{name}: found True, allowed is False: {reason}")


@cache
def _options(kind: Any) -> dict[str, Any]:
    """Types of the fields that classes of methods declare, not those of TrainingArguments."""
    own = [base for base in kind.__mro__ if issubclass(base, MethodArguments)]
    names = {name for base in own for name in vars(base).get("__annotations__", {})}
    return {name: hint for name, hint in get_type_hints(kind, include_extras=True).items() if name in names}


def _check(name: str, value: Any, annotation: Any) -> None:
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    checks = [_fits(value, kind) for kind in kinds]
    if not any(fits for fits, _ in checks):
        allowed = ", ".join(text for _, text in sorted(checks, key=lambda pair: pair[1] != "None"))
        raise ValueError(f"{name}: found {value!r}, allowed are {allowed}")


def _fits(value: Any, kind: Any) -> tuple[bool, str]:
    """Whether a value is of a type, and what is, in words; types that say nothing of values fit all."""
    bounds = Bounds()
    if get_origin(kind) is Annotated:
        kind, bounds = get_args(kind)[:2]
    if kind is NoneType:
        return value is None, "None"
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
