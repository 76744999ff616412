"""A second method, told to the registry by what is its own and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_ext.hub_cards import METHODS, Method, Picture, register_method


def _draw(values: Any, path: str) -> None:
    Path(path).write_text(json.dumps(values))


@pytest.fixture
def toy() -> Iterator[Method]:
    yield register_method(
        Method(
            name="toy",
            title="Toy",
            summary="nothing anyone needs",
            description="Toy, a method of the tests.",
            equation="It adds `1`.",
            paper="https://example.org/toy",
            bibtex="@misc{toy}",
            tags=("hf_ext", "toy"),
            limitations="It does nothing.",
            usage="from toys import {auto_class}\n\nmodel = {auto_class}.from_pretrained({place})\n",
            settings=lambda config: {"toy_size": config["toy_size"]} if "toy_size" in config else {},
            pictures=(Picture("toy.png", "What the toy saw", "seen", _draw),),
        )
    )
    del METHODS["toy"]
