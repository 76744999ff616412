"""What every folder of models has of its own, since a folder travels alone."""

from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "hf_ext" / "models"


@pytest.mark.parametrize("file", ["portable.py", "portable_loading.py"])
def test_it_is_the_same_file_in_every_folder(file: str) -> None:
    folders = [folder for folder in MODELS.iterdir() if (folder / "__init__.py").is_file()]
    assert len(folders) >= 2
    assert len({(folder / file).read_bytes() for folder in folders}) == 1
