"""Calls that wait for the import of a module."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], object]

_waiting: dict[str, list[Action]] = {}


def after_import(name: str, action: Action) -> None:
    """Calls `action(module)` when the module `name` has been imported, at once if it already is."""
    if name in sys.modules:
        action(sys.modules[name])
    else:
        _waiting.setdefault(name, []).append(action)


class _Finder(MetaPathFinder):
    """Finds the awaited modules as the finders after it do, and adds the calls to the end of their execution."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        actions = _waiting.pop(name, None)
        if actions is None:
            return None
        try:
            spec = importlib.util.find_spec(name)  # comes by here again, where nothing waits now
        finally:
            _waiting[name] = actions
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                for action in _waiting.pop(module.__name__, ()):
                    action(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
