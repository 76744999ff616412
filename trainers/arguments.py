"""The base of all methods' arguments."""

from dataclasses import dataclass, field
from typing import Any

from hf_ext._arguments import check_fields


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
        check_fields(self, MethodArguments)


def refuse_packing(args: Any, reason: str) -> None:
    """Refuse TRL's options that put several samples into one sequence.

    Raises:
        ValueError: one is on.
    """
    for name in ("packing", "padding_free"):
        if getattr(args, name, False):
            raise ValueError(f"{name}: found True, allowed is False: {reason}")
