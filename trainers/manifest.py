"""A checkpoint's manifest: what was saved, so that a later run knows whether all of it is there and unchanged.

`checkpoint_manifest.json` is written after all other files and names each of them with its size and, unless that is
switched off, its CRC-32, which shows what disks and networks do to bytes and protects from nobody who means harm.
Files that come into the folder later may be there, and README.md, which is for people, is none of its files.
"""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_ext._files import read_json, write_atomically

MANIFEST = "checkpoint_manifest.json"
#: lies in a checkpoint while transformers saves it on a signal (`enable_jit_checkpoint`), and is removed at the end
UNFINISHED = "checkpoint-is-incomplete.txt"
_README = "README.md"
_VERSION = 1
_CHUNK = 1 << 22


def files_of(folder: str | os.PathLike[str]) -> list[str]:
    """Names of a checkpoint's files, those of folders within too, in order; but for manifest, README, hidden ones."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
    names = {path.relative_to(folder).as_posix() for path in paths}
    return sorted(name for name in names - {MANIFEST, UNFINISHED} if name.rpartition("/")[2] != _README)


def write_manifest(folder: str | os.PathLike[str], *, checksums: bool = True) -> None:
    """Write the manifest of all files that are there now, in one step.

    Args:
        folder: of the checkpoint.
        checksums: False leaves them out: every file is read once more for them, at about the speed of a disk's cache.
    """
    folder = Path(folder)
    entries = {}
    for name in files_of(folder):
        entry: dict[str, Any] = {"bytes": (folder / name).stat().st_size}
        entries[name] = entry | ({"crc32": _crc32(folder / name)} if checksums else {})
    write_atomically(folder / MANIFEST, json.dumps({"version": _VERSION, "files": entries}, indent=1))


def has_manifest(folder: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint was written by trainers that make one."""
    return (Path(folder) / MANIFEST).exists()


def fault_by_manifest(folder: str | os.PathLike[str], concerns: Callable[[str], bool] | None = None) -> str | None:
    """What of a checkpoint is not as it was saved, in words that name the file; None if the manifest holds.

    Args:
        folder: of the checkpoint, with a manifest.
        concerns: which files are looked at, by name; all by default.
    """
    folder = Path(folder)
    try:
        saved = read_json(folder / MANIFEST)
        entries = {name: (int(entry["bytes"]), entry.get("crc32")) for name, entry in saved["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"an unreadable {MANIFEST!r}"
    if not entries:
        return f"an empty {MANIFEST!r}"
    faults = (
        _fault_of_file(folder, name, *entry) for name, entry in entries.items() if concerns is None or concerns(name)
    )
    return next((fault for fault in faults if fault), None)


def _fault_of_file(folder: Path, name: str, size: int, checksum: str | None) -> str | None:
    path = folder / name
    try:
        found = path.stat().st_size
        if found != size:
            return f"a {'truncated' if found < size else 'changed'} {name!r} ({found} bytes, saved were {size})"
        if checksum is not None and _crc32(path) != checksum:
            return f"a changed {name!r} (its checksum is not the one that was saved)"
    except FileNotFoundError:
        return f"no {name!r}, which was saved (it is missing)"
    except OSError as error:
        return f"an unreadable {name!r} ({error})"
    return None


def _crc32(path: Path) -> str:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
