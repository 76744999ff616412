"""What identifies a run: its data, its code, its options and the versions. By these a kept run is found again."""

import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets.table import embed_table_storage

from hf_ext._environment import versions
from hf_ext.data import load
from hf_ext.studies.study import Study

#: sub-packages that any study may train with
_PACKAGES = ("adapters", "data", "functional", "models", "studies", "trainers")
#: files of `hf_ext.studies` that only read what runs have left
_READERS = ("report.py", "results.py", "statistics.py")


def describe(name: str) -> dict[str, Any]:
    """SHA-256 over the rows of all splits, the number of rows in each and, of a single file, its own SHA-256."""
    data = load(name)
    digest = hashlib.sha256()
    for split in sorted(data):
        plain = data[split].with_format(None)
        digest.update(split.encode())
        for batch in plain.with_format("arrow").iter(batch_size=1000):
            whole = embed_table_storage(batch)  # pictures of a folder are paths here; their bytes count
            digest.update(repr(whole.to_pylist()).encode())
    file = Path(name).expanduser()
    return {
        "sha256": digest.hexdigest(),
        "rows": {split: len(data[split]) for split in sorted(data)},
        **({"file_sha256": hashlib.sha256(file.read_bytes()).hexdigest()} if file.is_file() else {}),
    }


def shown(given: str) -> str:
    """A path without the folders of this machine."""
    path = Path(given).expanduser()
    return path.name if path.is_absolute() or path.exists() else given


def code_of(study: Study) -> str:
    """SHA-256 over the source that a study's runs come from.

    These are the names and modules of `run` and `prepare`, the files beside them if they are in a package, and the
    sub-packages of hf_ext that train. Other modules that a study of another package imports are not followed.
    """
    digest = hashlib.sha256()
    functions = [function for function in (study.run, study.prepare) if function is not None]
    sources: dict[str, bytes] = {}
    for function in functions:
        digest.update(f"{function.__module__}.{function.__qualname__}\n".encode())
        sources |= _beside(function)
    for package in _PACKAGES:
        spec = importlib.util.find_spec(f"hf_ext.{package}")
        for place in (spec and spec.submodule_search_locations) or ():
            sources |= {f"hf_ext.{package}/{name}": text for name, text in _files(Path(place), "**/*.py")}
    for name, text in sorted(sources.items()):
        digest.update(f"{name} {hashlib.sha256(text).hexdigest()}\n".encode())
    return digest.hexdigest()


def _beside(function: Callable[..., object]) -> dict[str, bytes]:
    module = sys.modules[function.__module__]
    if not getattr(module, "__file__", None):  # of a notebook
        return {module.__name__: inspect.getsource(function).encode()}
    file = Path(str(module.__file__))
    pattern = "*.py" if module.__package__ else file.name
    return {f"{module.__package__}/{name}": text for name, text in _files(file.parent, pattern)}


def _files(folder: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    own = folder == Path(__file__).parent
    for path in folder.glob(pattern):
        if not (own and path.name in _READERS):
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def key(*parts: Any) -> str:
    """A short hash of JSON values and of the installed versions."""
    libraries = {name: found for name, found in versions().items() if name != "python"}
    return hashlib.sha256(json.dumps([parts, libraries], sort_keys=True).encode()).hexdigest()[:12]
