"""Files that are written whole or not at all, and JSON files with errors that say what was found."""

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: JSON that is nested deeper than this is broken: whoever walks through it would run out of stack
_DEEPEST = 100


@contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new file to write, which takes the place of `path` when the block ends.

    Whoever reads `path`, at any time, finds the old content or the new one; if the block raises, the old one stays. Of
    several writers the last one wins. The new file is a hidden one beside `path`, under a name that nobody can foresee
    and with the same ending, since some writers go by it. It has the permissions of any new file. No link is followed:
    one at `path` is replaced by the file.

    Args:
        path: where the file shall be; its folder is there.

    Raises:
        OSError: the folder cannot be written to, or `path` is a folder.
    """
    path = Path(path)
    new = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    new.touch(exist_ok=False)  # exclusive: neither a file nor a link that is there already is opened
    try:
        permissions = stat.S_IMODE(new.stat().st_mode)
        yield new
        new.chmod(permissions)  # safetensors puts a file in its place that nobody else may read
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file in one step, text as UTF-8; see `replaced_file`."""
    with replaced_file(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


def is_regular(path: str | os.PathLike[str]) -> bool:
    """Whether a file, or what a link leads to, can be read to its end: no folder, pipe, socket or device."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def sha256_of(content: bytes | Path) -> str:
    """SHA-256 of some bytes or of a file's."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | os.PathLike[str], name: str = "path") -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: of the file.
        name: what an error is about, such as the argument that led to the file.

    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: a file that is no JSON, JSON of something else or of more than 100 levels, or a pipe or device,
            which is not opened.
    """
    path = Path(path)
    if path.exists() and not path.is_dir() and not is_regular(path):
        raise ValueError(f"{name}: found {str(path)!r}, a pipe, socket or device, allowed is a file")
    try:
        values = json.loads(path.read_bytes())
        if _is_deeper(values, _DEEPEST):
            raise ValueError(f"nested deeper than {_DEEPEST} levels")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: found a broken {str(path)!r} ({error}), allowed is JSON") from None
    if not isinstance(values, dict):
        raise ValueError(f"{name}: found a {type(values).__name__} in {str(path)!r}, allowed is a JSON object")
    return values


def _is_deeper(values: Any, levels: int) -> bool:
    """Whether there are lists or objects within each other, more than so many; without recursion."""
    inner = [values]
    for _ in range(levels):
        inner = [item for value in inner if isinstance(value, list | dict) for item in _items(value)]
    return any(isinstance(value, list | dict) for value in inner)


def _items(value: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
