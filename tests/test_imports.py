"""`import hf_ext` is light, and its lazy names are all there."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import hf_ext
import hf_ext.adapters
import hf_ext.trainers

ROOT = Path(__file__).resolve().parents[1]


def test_import_loads_no_heavy_package() -> None:
    code = "import sys, hf_ext; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"accelerate", "asyncio", "datasets", "matplotlib", "numpy", "peft", "sklearn", "torch", "transformers"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("package", [hf_ext, hf_ext.adapters, hf_ext.trainers], ids=lambda package: package.__name__)
def test_every_public_name_resolves(package: object) -> None:
    assert dir(package)
    for name in dir(package):
        assert getattr(package, name) is not None


def test_root_offers_the_names_of_its_packages() -> None:
    for package in (hf_ext.adapters, hf_ext.trainers):
        for name in dir(package):
            assert getattr(hf_ext, name) is getattr(package, name)


@pytest.mark.parametrize("folder", ["hf_ext", "adapters", "trainers"])
def test_stubs_re_export(folder: str) -> None:
    """Type checkers take a stub's `import X` as private and `import X as X` as public."""
    stub = ast.parse((ROOT / folder / "__init__.pyi").read_text())
    names = [name for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) for name in node.names]
    assert names
    assert all(name.asname == name.name for name in names)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        hf_ext.nothing_of_that_name  # noqa: B018


def test_reload_leaves_one_import_path() -> None:
    before = list(hf_ext.__path__)
    importlib.reload(hf_ext)
    importlib.reload(hf_ext)
    assert list(hf_ext.__path__) == before
    assert hf_ext.MoLAConfig is hf_ext.adapters.MoLAConfig
