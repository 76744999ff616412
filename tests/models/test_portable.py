"""What every folder of models has of its own, since a folder travels alone."""

from pathlib import Path

MODELS = Path(__file__).parents[2] / "hf_ext" / "models"


def test_it_is_the_same_file_in_every_folder() -> None:
    folders = [folder for folder in MODELS.iterdir() if (folder / "__init__.py").is_file()]
    assert len(folders) >= 2
    assert len({(folder / "portable.py").read_bytes() for folder in folders}) == 1
