"""Who may import whom within hf_ext: arrows point down only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hf_ext", "trainers", "adapters", "hub_cards")
#: by part, the parts of hf_ext that it must not import; a file that may is named in `EXCEPTIONS`
FORBIDDEN = {
    "commands": {"studies", "benchmarks"},
    "benchmarks": {"commands", "studies"},
    "studies": {"commands", "benchmarks"},
    "trainers": {"commands", "studies", "benchmarks"},
    "adapters": {"commands", "studies", "benchmarks", "trainers"},
    "hub_cards": {"commands", "studies", "benchmarks", "trainers"},
    "models": {"commands", "studies", "benchmarks", "trainers", "adapters", "hub_cards"},
    "data": {"commands", "studies", "benchmarks", "trainers", "adapters", "hub_cards", "models"},
    "metrics": {"commands", "studies", "benchmarks", "trainers", "adapters", "hub_cards", "models"},
    "root": {"commands", "studies", "benchmarks"},
}
EXCEPTIONS = {
    "commands/reproduce.py": {"studies"},  # runs them
    "commands/tuned.py": {"studies"},  # runs them
    "commands/readme.py": {"studies", "benchmarks"},  # shows their results
    "commands/bench.py": {"benchmarks"},  # runs them
    "benchmarks/tarf.py": {"studies"},  # times the study's own setting
}
ONLY_TORCH = {"torch", "hf_ext"}


def _files() -> list[Path]:
    return [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]


def _place(path: Path) -> str:
    """As in `import hf_ext....`: "commands/demo.py"."""
    return path.relative_to(ROOT).as_posix().removeprefix("hf_ext/")


def _part(path: Path) -> str:
    place = _place(path)
    return place.partition("/")[0] if "/" in place else "root"


def _imports(path: Path) -> Iterator[str]:
    """Every absolute import in a file, wherever it stands, as `hf_ext.trainers.base` or `torch`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", _files(), ids=_place)
def test_arrows_point_down(path: Path) -> None:
    forbidden = FORBIDDEN.get(_part(path), set()) - EXCEPTIONS.get(_place(path), set())
    imported = {name.split(".")[1] for name in _imports(path) if name.startswith("hf_ext.")}
    assert not imported & forbidden


@pytest.mark.parametrize("path", sorted((ROOT / "hf_ext" / "functional").rglob("*.py")), ids=_place)
def test_functional_imports_torch_alone(path: Path) -> None:
    names = set(_imports(path))
    assert {name.partition(".")[0] for name in names} <= ONLY_TORCH | set(sys.stdlib_module_names)
    assert all(name.startswith(("hf_ext.functional", "hf_ext._lazy")) for name in names if name.startswith("hf_ext"))


def test_every_exception_is_needed() -> None:
    for place, parts in EXCEPTIONS.items():
        imported = {name.split(".")[1] for name in _imports(ROOT / "hf_ext" / place) if name.startswith("hf_ext.")}
        assert parts <= imported
