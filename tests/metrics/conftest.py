"""The tests of this folder share toys, by their plain name, and one cache of evaluate's."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder for all modules that a process loads: Python imports their package once, from where it is then."""
    import evaluate

    folder, before = tmp_path_factory.mktemp("evaluate"), evaluate.config.HF_MODULES_CACHE
    evaluate.config.HF_MODULES_CACHE = folder
    yield str(folder)
    evaluate.config.HF_MODULES_CACHE = before
