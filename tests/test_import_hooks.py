"""Calls that wait for an import, on modules made here."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hf_ext import _import_hooks
from hf_ext._import_hooks import after_import

NAME = "hf_ext_awaited_module"


@pytest.fixture
def calls() -> list[ModuleType]:
    return []


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes the code of the awaited module."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> None:
        (tmp_path / f"{NAME}.py").write_text(code)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop(NAME, None)
    _import_hooks._waiting.pop(NAME, None)


def test_called_once_when_the_module_is_complete(write: Callable[[str], None], calls: list[ModuleType]) -> None:
    write("a = 1\nb = 2")
    after_import(NAME, calls.append)
    assert not calls
    module = importlib.import_module(NAME)
    assert calls == [module]
    assert module.b == 2
    importlib.reload(module)
    assert calls == [module]


def test_called_at_once_when_already_imported(write: Callable[[str], None], calls: list[ModuleType]) -> None:
    write("")
    module = importlib.import_module(NAME)
    after_import(NAME, calls.append)
    assert calls == [module]


def test_looking_for_the_module_is_not_importing_it(write: Callable[[str], None], calls: list[ModuleType]) -> None:
    write("")
    after_import(NAME, calls.append)
    assert importlib.util.find_spec(NAME) is not None
    assert not calls
    assert [importlib.import_module(NAME)] == calls


def test_waits_on_after_a_failed_import(write: Callable[[str], None], calls: list[ModuleType]) -> None:
    after_import(NAME, calls.append)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(NAME)
    write("1 / 0")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module(NAME)
    assert not calls
    write("fine = True")
    assert [importlib.import_module(NAME)] == calls


def test_second_copy_of_the_package_does_no_harm(write: Callable[[str], None], calls: list[ModuleType]) -> None:
    write("")
    after_import(NAME, calls.append)
    spec = importlib.util.find_spec(_import_hooks.__name__)
    assert spec is not None and spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    before = list(sys.meta_path)
    spec.loader.exec_module(again)
    try:
        again.after_import(NAME, calls.append)
        module = importlib.import_module(NAME)
    finally:
        sys.meta_path[:] = before
    assert calls == [module, module]
