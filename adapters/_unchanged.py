"""Adapters are put into a model in place: when that fails half way, the model becomes what it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class State:
    """What models and other objects consist of: their attributes, and what is in their dicts, lists and sets.

    Of a model this is every module with its submodules, parameters, buffers, hooks, mode and active adapters, and
    which parameters are trained. Tensors are not copied: a change of their values stays.
    """

    def __init__(self, *owners: Any) -> None:
        models = [owner for owner in owners if isinstance(owner, nn.Module)]
        parts = [part for model in models for part in model.modules()]
        parts += [owner for owner in owners if not isinstance(owner, nn.Module)]
        self._attributes = [(part, dict(vars(part))) for part in parts]
        values = [value for _, attributes in self._attributes for value in attributes.values()]
        # the objects themselves stay the same: a hook's handle, for one, refers to the dict that the hook is in
        self._lists = [(value, list(value)) for value in values if isinstance(value, list)]
        self._sets = [(value, set(value)) for value in values if isinstance(value, set)]
        self._dicts = [(value, dict(value)) for value in values if isinstance(value, dict)]
        self._trained = [(value, value.requires_grad) for model in models for value in model.parameters()]

    def restore(self) -> None:
        """Make all of it as it was."""
        for part, attributes in self._attributes:
            vars(part).clear()
            vars(part).update(attributes)
        for values, items in self._lists:
            values[:] = items
        for names, members in self._sets:
            names.clear()
            names.update(members)
        for entries, content in self._dicts:
            entries.clear()
            entries.update(content)
        for parameter, trained in self._trained:
            parameter.requires_grad = trained


@contextmanager
def unchanged_on_error(*owners: Any) -> Iterator[State]:
    """Models and other objects that are as before if the block raises; see `State`."""
    before = State(*owners)
    try:
        yield before
    except BaseException:
        before.restore()
        raise
