"""What the distributions hold, seen from an empty folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "hf_ext": "hf_ext",
    "adapters": "hf_ext/adapters",
    "hub_cards": "hf_ext/hub_cards",
    "trainers": "hf_ext/trainers",
}
TOP_LEVEL = ("pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that builds leave nothing in the checkout and find nothing stale there."""
    copy = tmp_path_factory.mktemp("source")
    for folder in (*FOLDERS, "tests", "examples"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in TOP_LEVEL:
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def dist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    _python("-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation of the wheel."""
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = dist.glob("*.whl")
    _python("-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    return folder


def _python(*args: object, cwd: Path, path: Path | None = None) -> str:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_has_every_file_and_no_other(source: Path, dist: Path) -> None:
    expected = {
        f"{target}/{file.relative_to(source / folder).as_posix()}"
        for folder, target in FOLDERS.items()
        for file in (source / folder).rglob("*")
        if file.is_file() and file.name != "README.md"
    }
    (wheel,) = dist.glob("*.whl")
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected


def test_sdist_has_tests_and_examples(source: Path, dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        found = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    files = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()}
    assert {file for file in files if not file.endswith("README.md")} <= found
    assert set(TOP_LEVEL) <= found


def test_installed_package_has_one_import_root(site: Path, tmp_path: Path) -> None:
    code = """
import importlib.util, hf_ext, sys
for name in ("adapters", "hub_cards", "trainers"):
    assert importlib.util.find_spec(name) is None, name
assert list(hf_ext.__path__) == [sys.argv[1] + "/hf_ext"]
for name in dir(hf_ext):
    getattr(hf_ext, name)
for module in list(sys.modules.values()):
    if module.__name__.startswith("hf_ext"):
        assert module.__file__.startswith(sys.argv[1]), module
"""
    _python("-c", code, site, cwd=tmp_path, path=site)


def test_checkout_is_importable_without_installation(source: Path, tmp_path: Path) -> None:
    code = """
import sys
from hf_ext import adapters, trainers
assert adapters.__file__ == sys.argv[1] + "/adapters/__init__.py"
assert trainers.__file__ == sys.argv[1] + "/trainers/__init__.py"
"""
    _python("-c", code, source, cwd=source)
    _python("-c", code, source, cwd=tmp_path, path=source)


def test_command_of_the_installed_package(site: Path, tmp_path: Path) -> None:
    assert "hf-ext" in _python("-m", "hf_ext.commands.cli", "--help", cwd=tmp_path, path=site)
    assert (site / "bin" / "hf-ext").exists()
