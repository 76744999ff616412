"""Text of users on its way into markdown and YAML: nothing in it can break either."""

import os
import re
from pathlib import Path
from typing import Any

#: of longer lists only the first values are told
_LONG, _TOLD = 10, 5


def yaml(value: Any) -> Any:
    """Text without the one character that YAML writers and readers treat differently."""
    return value.replace("\x85", " ") if isinstance(value, str) else value


def line(value: Any) -> str:
    """Text within a line: no markup, no HTML, no second line."""
    text = re.sub(r"\s+", " ", str(value)).strip()
    return re.sub(r"([\\`*{}\[\]<>#|~$&]|(?<![^\W_])_)", r"\\\1", text)  # no emphasis starts within a word


def block(value: Any) -> str:
    """Text of a paragraph of its own: as `line`, and it starts no list and underlines no heading."""
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", line(value))


def cell(value: Any) -> str:
    """Text of one table cell; of a long list the beginning."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    if isinstance(value, list | tuple | set):
        items = [str(item) for item in value]
        more = len(items) - _TOLD if len(items) > _LONG else 0
        value = ", ".join(items[: len(items) - more]) + (f" and {more} more" if more else "")
    return line(value) or " "


def code(value: str) -> str:
    """A fenced block that the text cannot end."""
    fence = _fence(value, 3)
    return f"{fence}python\n{value.rstrip()}\n{fence}"


def span(value: str) -> str:
    """Code within a line that the text cannot end."""
    text, pad = re.sub(r"\s+", " ", value).strip(), " " if "`" in value else ""
    fence = _fence(text, 1)
    return f"{fence}{pad}{text}{pad}{fence}"


def without_path(name: str) -> str:
    """The name; of a place on this machine its last part."""
    if name.startswith(("/", "./", "../", "~")) or os.path.isabs(name) or os.path.exists(name):
        return Path(os.path.abspath(os.path.expanduser(name))).name or "unknown"
    return name


def _fence(value: str, least: int) -> str:
    return "`" * max(least, 1 + max((len(run) for run in re.findall(r"`+", value)), default=0))
