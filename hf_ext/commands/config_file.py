"""Options from a YAML file, each read as its type says."""

import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

_LARGEST = 2**20  # bytes; options of a training are a page or two
_LONGEST = 10_000  # values in a mapping: an alias of aliases stands for as many as it likes
_TAG = "tag:yaml.org,2002:"
_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "t", "y", "1"), True),
    **dict.fromkeys(("false", "no", "off", "f", "n", "0"), False),
}


class _Unfit(Exception):
    """A value that is not of a type."""


def read_config(file: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a YAML file.

    Each is read as its type says and not as YAML would guess: `no` is a text where texts are allowed, 2024 the name of
    a folder, 1e-3 a number, 2.0 a whole one; one value stands for a list of one.

    Args:
        file: its path.
        options: by name, the types that they are annotated with.

    Raises:
        ValueError: no such file, no YAML, anything but one mapping, a key that is no option or is there twice, or a
            value of another type; it names file, line and key.
    """
    values: dict[str, Any] = {}
    for key, node in _entries(file):
        place = f"{file!r}, line {key.start_mark.line + 1}"
        name = key.value if isinstance(key, yaml.ScalarNode) else _shown(key)
        if name not in options:
            raise ValueError(f"--config: found {name[:100]!r} in {place}, an unknown option{nearest(name, options)}")
        if name in values:
            raise ValueError(f"{name}: found a second value in {place}, allowed is one")
        try:
            values[name] = _read(node, options[name])
        except _Unfit as misfit:
            found = f"the tag {node.tag!r}" if not _is_plain(node) else _shown(node)
            why = f" ({misfit})" if str(misfit) else ""
            raise ValueError(f"{name}: found {found}{why} in {place}, allowed {_allowed(options[name])}") from None
    return values


def nearest(name: str, names: Collection[str]) -> str:
    """What may have been meant by a name, to be added to an error."""
    close = difflib.get_close_matches(name[:100], sorted(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _entries(file: str) -> list[tuple[yaml.Node, yaml.Node]]:
    """Keys and values of the mapping in a file, before anything is made of them."""
    if not Path(file).is_file():
        raise ValueError(f"--config: found {file!r}, which is no file, allowed is a YAML file")
    size = Path(file).stat().st_size
    if size > _LARGEST:
        raise ValueError(f"--config: found {size} bytes in {file!r}, allowed are {_LARGEST}")
    try:
        document = yaml.compose(Path(file).read_bytes(), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--config: found {file!r}, which is not one YAML document ({reason})") from error
    if not isinstance(document, yaml.MappingNode) or not _is_plain(document):
        found = "nothing" if document is None else _shown(document)
        raise ValueError(f"--config: found {found} in {file!r}, allowed is a mapping of option names to values")
    return document.value


# ------------------------------------------------------------------------------------------------ values
def _read(node: yaml.Node, kind: Any) -> Any:
    """The value of a node as a type, or as the first of several that it is of; a text is the last that is tried."""
    if not _is_plain(node):
        raise _Unfit
    kinds = _alternatives(kind)
    if node.tag == f"{_TAG}null":
        if NoneType in kinds:
            return None
        raise _Unfit
    reasons = []
    for one in sorted(kinds, key=lambda one: (_is_list(node) != _is_list_of(one), one is str)):
        try:
            return _read_as(node, one)
        except _Unfit as misfit:
            reasons.append(str(misfit))
    raise _Unfit(max(reasons, key=len, default=""))


def _read_as(node: yaml.Node, kind: Any) -> Any:
    origin: Any = get_origin(kind) or kind
    if origin is list:
        return [_read(item, *get_args(kind)) for item in (node.value if _is_list(node) else [node])]
    if origin is dict and isinstance(node, yaml.MappingNode):
        return _plain(node, iter(range(_LONGEST)))
    if not isinstance(node, yaml.ScalarNode):
        raise _Unfit
    if _is_text(kind):
        return node.value
    choices = _choices(kind)
    if choices is not None:
        if node.value not in choices:
            raise _Unfit
        return choices[node.value]
    if kind is bool:
        if node.value.lower() not in _WORDS:
            raise _Unfit
        return _WORDS[node.value.lower()]
    if kind in (int, float):
        return kind(_number(node.value, whole=kind is int))
    raise _Unfit


def _number(text: str, *, whole: bool) -> float:
    for read in (lambda: int(text, 0), lambda: float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))):
        try:
            number: float = read()
        except ValueError:
            continue
        if math.isnan(number) or (whole and number != number // 1):
            raise _Unfit
        return number
    raise _Unfit


def _plain(node: yaml.Node, budget: Iterator[int], depth: int = 0) -> Any:
    """What YAML makes of a node, unless that is too much."""
    if next(budget, None) is None or depth > 20:
        raise _Unfit("too large or deep")
    if not _is_plain(node):
        raise _Unfit(f"with the tag {node.tag!r}")
    if isinstance(node, yaml.MappingNode):
        entries = [(_plain(key, budget, depth + 1), _plain(value, budget, depth + 1)) for key, value in node.value]
        if not all(isinstance(key, str) for key, _ in entries) or len(dict(entries)) < len(entries):
            raise _Unfit("with keys that are no text, or twice the same")
        return dict(entries)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, budget, depth + 1) for item in node.value]
    if node.tag in (f"{_TAG}null", f"{_TAG}bool"):
        return None if node.tag == f"{_TAG}null" else _WORDS[node.value.lower()]
    try:
        number = _number(node.value, whole=False)
    except _Unfit:
        return node.value
    return node.value if getattr(node, "style", None) else number


# ------------------------------------------------------------------------------------------------ types and words
def _alternatives(kind: Any) -> tuple[Any, ...]:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    # a text beside an enumeration is that of one of its members
    return tuple(one for one in kinds if one is not str or not any(_is_enum(other) for other in kinds))


def _choices(kind: Any) -> dict[str, Any] | None:
    """The values of a type that lists them, by the text that stands for each."""
    if _is_enum(kind):
        return {str(member.value): member.value for member in kind}
    return {str(value): value for value in get_args(kind)} if get_origin(kind) is Literal else None


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _is_text(kind: Any) -> bool:
    """Text, or a kind of it, such as a word or a number."""
    return isinstance(kind, type) and issubclass(kind, str) and not issubclass(kind, Enum)


def _is_list_of(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is list


def _is_list(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode)


def _is_plain(node: yaml.Node) -> bool:
    """Whether it is of YAML's own types; others, and those of Python, are for programs to make."""
    return node.tag.removeprefix(_TAG) in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "value")


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        text = repr(node.value[:100]) if node.tag == f"{_TAG}str" else node.value[:100]
        return "null" if node.tag == f"{_TAG}null" else text
    if _is_list(node) and len(node.value) < 5 and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return f"[{', '.join(map(_shown, node.value))}]"
    return "a list" if _is_list(node) else "a mapping"


def _allowed(kind: Any) -> str:
    return "are " + ", ".join(_in_words(one) for one in sorted(_alternatives(kind), key=lambda one: one is NoneType))


def _in_words(kind: Any) -> str:
    choices = _choices(kind)
    if choices is not None:
        return ", ".join(map(repr, choices))
    if get_origin(kind) is list:
        return f"lists of {_in_words(*get_args(kind))}"
    if _is_text(kind):
        return "text"
    words = {NoneType: "null", bool: "true, false", int: "integers", float: "numbers"}
    return words.get(kind, "mappings" if (get_origin(kind) or kind) is dict else "none from a file")
