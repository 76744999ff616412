"""Choices by name that functions take."""

from typing import get_args


def check_word(name: str, value: str, words: object) -> None:
    """Refuse a value that is none of a `Literal`.

    Raises:
        ValueError: naming the argument, the value and what is allowed.
    """
    if value not in get_args(words):
        raise ValueError(f"{name}: found {value!r}, allowed are {', '.join(map(repr, get_args(words)))}")
