"""A toy study, importable from the processes that a study starts as well."""

import importlib
from pathlib import Path
from types import ModuleType

import datasets
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the toy study, with nothing recorded yet."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "toys")
    module = importlib.import_module("toys.studies.toy")
    module.RUNS.clear()
    module.PREPARED.clear()
    return module


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A table of two rows."""
    path = tmp_path / "private folder" / "table.csv"
    path.parent.mkdir()
    path.write_text("a,b\n1,2\n3,4\n")
    return str(path)
