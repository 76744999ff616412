"""A toy method with a study and a benchmark: all that a second method has to tell is in one entry of the registry."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from hf_ext.hub_cards import METHODS, Method, register_method

TOYS = Path(__file__).parents[1] / "toys"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Method]:
    monkeypatch.syspath_prepend(TOYS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    yield register_method(
        Method(
            name="toy",
            title="Toy",
            summary="nothing anyone needs",
            description="Toy, a method of the tests.",
            equation="It adds `1`.",
            paper="https://example.org/toy",
            bibtex="@misc{toy}",
            tags=("toy",),
            limitations="It does nothing.",
            usage="{auto_class}.from_pretrained({place})",
            package="toys",
        )
    )
    METHODS.pop("toy", None)
