"""Many trainings in one process, each of which begins with a search of the whole process for garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def spare() -> None:
    """Take all that lives, such as imported libraries, out of later searches.

    `Trainer.train` frees memory as it begins, by a full collection: about 0.3 seconds once the ecosystem is imported,
    which is more than many a small model trains.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def spared() -> Iterator[None]:
    """`spare` until the end of a block; what its caller has spared before stays so."""
    before = gc.get_freeze_count()
    spare()
    try:
        yield
    finally:
        if not before:
            gc.unfreeze()
