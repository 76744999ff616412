"""`import hf_ext` is light, and its lazy names are all there."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hf_ext
import hf_ext.adapters
import hf_ext.benchmarks
import hf_ext.data
import hf_ext.functional
import hf_ext.hub_cards
import hf_ext.metrics
import hf_ext.models
import hf_ext.studies
import hf_ext.trainers

ROOT = Path(__file__).resolve().parents[1]
STUBS = [path for folder in ("adapters", "hf_ext", "hub_cards", "trainers") for path in (ROOT / folder).rglob("*.pyi")]
PACKAGES = (
    *(hf_ext, hf_ext.adapters, hf_ext.benchmarks, hf_ext.data, hf_ext.functional, hf_ext.hub_cards),
    *(hf_ext.metrics, hf_ext.models, hf_ext.studies, hf_ext.trainers),
)


def test_import_loads_no_heavy_package() -> None:
    code = "import sys, hf_ext; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"accelerate", "asyncio", "datasets", "matplotlib", "numpy", "peft", "sklearn", "torch", "transformers"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_resolves(package: ModuleType) -> None:
    assert dir(package)
    for name in dir(package):
        assert getattr(package, name) is not None


def test_root_offers_the_names_of_adapters_models_and_trainers() -> None:
    for package in (hf_ext.adapters, hf_ext.models, hf_ext.trainers):
        for name in dir(package):
            assert getattr(hf_ext, name) is getattr(package, name)


@pytest.mark.parametrize("path", STUBS, ids=lambda path: path.parent.name)
def test_stubs_re_export(path: Path) -> None:
    """Type checkers take a stub's `import X` as private and `import X as X` as public."""
    stub = ast.parse(path.read_text())
    names = [name for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) for name in node.names]
    assert names
    assert all(name.asname == name.name or name.name == "*" for name in names)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        hf_ext.nothing_of_that_name  # noqa: B018


def test_reload_leaves_one_import_path() -> None:
    before = list(hf_ext.__path__)
    importlib.reload(hf_ext)
    importlib.reload(hf_ext)
    assert list(hf_ext.__path__) == before
    assert hf_ext.MoLAConfig is hf_ext.adapters.MoLAConfig
