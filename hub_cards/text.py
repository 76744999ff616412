"""Text of users on its way into markdown, YAML and pictures: nothing in it breaks these or leads a reader astray."""

import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

#: of longer lists only the first values are told
_LONG, _TOLD = 10, 5
#: what terminals take for commands: colours, titles, links
_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]")
#: Unicode's categories of what has no glyph: control and format characters, which turn or hide text, and surrogates
_UNSEEN = {"Cc", "Cf", "Cs"}
#: and what has none though its category does not say so: joiners, fillers, tags
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2065\u3164\uffa0\U000e0000-\U000e0fff]")


def visible(value: Any) -> str:
    """Text without what nobody sees: control characters and escapes of terminals, marks that turn or hide text.

    Line separators of other sorts than `\\n` become spaces; `\\n` and tabs stay. Where nothing is left, that is shown.
    """
    text = _BLANK.sub("", _ESCAPES.sub("", str(value).replace("\r\n", "\n")))
    seen = "".join(map(_seen, text))
    return seen if seen.strip() or not str(value).strip() else "\ufffd"


def _seen(char: str) -> str:
    if char in "\n\t":
        return char
    if char in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029":
        return " "
    return "" if unicodedata.category(char) in _UNSEEN else char


def _visible_within(value: Any) -> Any:
    """What is seen of the texts in lists and mappings, before Python writes down what is not."""
    if isinstance(value, Mapping):
        return {
            visible(name) if isinstance(name, str) else name: _visible_within(item) for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return list(map(_visible_within, value))
    return visible(value) if isinstance(value, str) else value


def yaml(value: Any) -> Any:
    """Text as a value of YAML's; the characters that its writers and readers treat differently are not in it."""
    return visible(value) if isinstance(value, str) else value


def line(value: Any) -> str:
    """Text within a line: no markup, no HTML, no second line."""
    text = re.sub(r"\s+", " ", visible(value)).strip()
    return re.sub(r"([\\`*{}\[\]<>#|~$&]|(?<![^\W_])_)", r"\\\1", text)  # no emphasis starts within a word


def block(value: Any) -> str:
    """Text of a paragraph of its own: as `line`, and it starts no list and underlines no heading."""
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", line(value))


def cell(value: Any) -> str:
    """Text of one table cell; of a long list the beginning."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    if isinstance(value, list | tuple | set):
        items = [str(_visible_within(item)) for item in value]
        more = len(items) - _TOLD if len(items) > _LONG else 0
        value = ", ".join(items[: len(items) - more]) + (f" and {more} more" if more else "")
    return line(_visible_within(value)) or " "


def code(value: str) -> str:
    """A fenced block that the text cannot end."""
    value = visible(value)
    fence = _fence(value, 3)
    return f"{fence}python\n{value.rstrip()}\n{fence}"


def span(value: str) -> str:
    """Code within a line that the text cannot end."""
    text, pad = re.sub(r"\s+", " ", visible(value)).strip(), " " if "`" in value else ""
    fence = _fence(text, 1)
    return f"{fence}{pad}{text}{pad}{fence}"


def is_place(name: str) -> bool:
    """Whether a text is a path of this machine, or of any, wherever it leads."""
    return (
        name.startswith(("/", "./", "../", "~", "file:", "\\\\"))
        or name in (".", "..")
        or os.path.isabs(name)
        or PureWindowsPath(name).is_absolute()
    )


def without_path(name: str) -> str:
    """The name; of a place on this machine its last part."""
    if PureWindowsPath(name).is_absolute():
        return PureWindowsPath(name).name or "unknown"
    if is_place(name) or os.path.exists(name):
        return Path(os.path.abspath(os.path.expanduser(name.removeprefix("file:")))).name or "unknown"
    return name


def without_paths(value: Any) -> Any:
    """A value in which every path is its last part, however deep it lies in lists and mappings."""
    if isinstance(value, str | os.PathLike):
        return without_path(os.fsdecode(value) if isinstance(value, os.PathLike) else value)
    if isinstance(value, Mapping):
        return {
            without_path(name) if isinstance(name, str) else name: without_paths(item) for name, item in value.items()
        }
    if isinstance(value, set | frozenset):
        return sorted(str(without_paths(item)) for item in value)
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return value


def _fence(value: str, least: int) -> str:
    return "`" * max(least, 1 + max((len(run) for run in re.findall(r"`+", value)), default=0))
