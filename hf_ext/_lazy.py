"""Names that are imported on first use, from the stubs that type checkers read."""

import ast
from collections.abc import Callable, Iterable
from pathlib import Path

import lazy_loader


def attach_stub(
    package: str, path: Iterable[str]
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package, from its `__init__.pyi`.

    As `lazy_loader.attach_stub`, and `from .part import *` stands for all names in the stub of that part: so a name is
    written in the package that has it, and in no other.

    Args:
        package: its `__name__`.
        path: its `__path__`.
    """
    submodules, names = _read(path)
    return lazy_loader.attach(package, submodules, names)


def _read(path: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The modules that a stub names, and the names by the module that they come from."""
    places = [Path(place) for place in path]
    submodules: list[str] = []
    names: dict[str, list[str]] = {}
    for node in ast.parse((places[0] / "__init__.pyi").read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        imported = [alias.name for alias in node.names]
        if node.module is None:
            submodules += imported
        elif imported == ["*"]:
            names[node.module] = _names_of([place / node.module for place in places])
        else:
            names.setdefault(node.module, []).extend(imported)
    return submodules, names


def _names_of(places: Iterable[Path]) -> list[str]:
    folder = next(place for place in places if (place / "__init__.pyi").is_file())
    submodules, names = _read([str(folder)])
    return [*submodules, *(name for group in names.values() for name in group)]
