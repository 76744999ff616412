"""What identifies a run: its data, its code, its options and the versions. A saved run is looked up by these."""

import ast
import hashlib
import importlib.util
import inspect
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.table import embed_table_storage

from hf_ext._environment import versions
from hf_ext.data import load
from hf_ext.studies.study import Study

#: sub-packages of `hf_ext` that any study may train with, and what they share
_PACKAGES = ("adapters", "data", "functional", "models", "studies", "trainers")
_SHARED = ("_arguments.py", "_models.py", "_runs.py", "_small_models.py")
#: files of `hf_ext` that no run depends on: they read and write what runs have left
_READERS = ("studies/report.py", "studies/results.py", "studies/statistics.py")


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


def shown(place: str) -> str:
    """A path without the folders of this machine."""
    path = Path(place).expanduser()
    return path.name if path.is_absolute() or path.exists() else place


def code_of(study: Study) -> str:
    """SHA-256 over the definitions that a study's runs come from.

    These are `run` and `prepare`, the files in their folder if they are in a package, and of hf_ext the sub-packages
    that train and what these share. Other modules that a study of another package imports do not count.

    A definition counts as it is parsed. Comments, docstrings, imports and the file that it stands in do not: saved
    runs stay valid where code is moved or explained better.
    """
    functions = [function for function in (study.run, study.prepare) if function is not None]
    files = [path for function in functions for path in _own_files(function)]
    root = Path(__file__).parents[1]
    files += [root / name for name in _SHARED]
    for package in _PACKAGES:
        spec = importlib.util.find_spec(f"hf_ext.{package}")
        for place in (spec and spec.submodule_search_locations) or ():
            files += Path(place).rglob("*.py")
    counted = {path.resolve() for path in files} - {(root / name).resolve() for name in _READERS}
    # not a set: two methods may have a constant of one name, and of one value until one of them changes
    definitions = [definition for path in counted for definition in _definitions(path.read_bytes())]
    digest = hashlib.sha256()
    for text in (*map(_source, functions), *sorted(definitions)):
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _own_files(function: Callable[..., object]) -> list[Path]:
    module = sys.modules[function.__module__]
    if not getattr(module, "__file__", None):  # of a notebook
        return []
    file = Path(str(module.__file__))
    return list(file.parent.glob("*.py")) if module.__package__ else [file]


def _source(function: Callable[..., object]) -> str:
    """Of the function itself, which tells it from others of the same file."""
    try:
        definitions = sorted(_definitions(textwrap.dedent(inspect.getsource(function)).encode()))
    except (OSError, SyntaxError):  # typed in, or a lambda within an expression
        definitions = []
    return "\n".join([function.__qualname__, *definitions])


def _definitions(source: bytes) -> list[str]:
    """Every statement of a module but imports, without docstrings and comments."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        has_body = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if has_body and ast.get_docstring(node) is not None:  # type: ignore[arg-type]
            del node.body[0]  # type: ignore[attr-defined]
    return [ast.dump(statement) for statement in tree.body if not isinstance(statement, ast.Import | ast.ImportFrom)]


def key(*parts: Any) -> str:
    """A short hash of JSON values and of the installed versions."""
    libraries = {name: version for name, version in versions().items() if name != "python"}
    return hashlib.sha256(json.dumps([parts, libraries], sort_keys=True).encode()).hexdigest()[:12]
