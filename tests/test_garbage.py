"""What lives is spared the searches for garbage, for as long as that is asked for."""

import gc
import weakref

import pytest

from hf_ext._garbage import spare, spared


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_spared_is_searched_again_after_the_block() -> None:
    gc.unfreeze()
    with pytest.raises(KeyError), spared():
        assert gc.get_freeze_count() > 0
        raise KeyError
    assert gc.get_freeze_count() == 0


def test_what_the_caller_spares_stays_so() -> None:
    spare()
    with spared():
        pass
    assert gc.get_freeze_count() > 0


def test_garbage_is_not_spared() -> None:
    gc.disable()
    try:
        cycle = Cycle()
        left = weakref.ref(cycle)
        del cycle
        assert left() is not None
        spare()
        assert left() is None
    finally:
        gc.enable()
