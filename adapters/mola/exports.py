"""The folder of an exported adapter: written aside, swapped in such that no state of it is half old and half new."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_ext._files import sha256_of
from hf_ext.hub_cards.folder import without_local_paths
from hf_ext.hub_cards.saved import SavedFacts

CONFIG = "adapter_config.json"
#: the folder of a trained base model, within the adapter's
BASE_MODEL = "base_model"
#: files that make a folder an adapter's or a model's
_MODELS = (CONFIG, "config.json", "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")


def refuse_other_models(folder: Path) -> None:
    """Raise ValueError if an export to this folder would write over, or lie beside, what is no earlier export.

    What an export wrote is known by its content, so it does not matter by which path the folder is named.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: found {str(folder)!r}, which is no folder, allowed is one, or a new one")
    found = {path.name for pattern in _MODELS for path in folder.glob(pattern)}
    found |= {CONFIG} if os.path.lexists(folder / CONFIG) else set()  # a link that leads nowhere
    base = folder / BASE_MODEL
    inner = base.is_dir() and not base.is_symlink()
    found |= {path.relative_to(folder).as_posix() for path in base.rglob("*") if not path.is_dir()} if inner else set()
    found |= {BASE_MODEL} if os.path.lexists(base) and not inner else set()
    saved = SavedFacts.read(folder)
    if foreign := sorted(name for name in found if not saved.are_ours(folder, name)):
        raise ValueError(
            f"folder: found {foreign[0]!r} in {str(folder)!r}, of a model or adapter that is no earlier export, "
            "allowed is a new folder, or one of an earlier export that nobody has changed"
        )


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A new folder within this one, which is made if needed; nothing of it is left in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as aside:
        yield Path(aside)


def swap_in(aside: Path, folder: Path, **facts: Any) -> None:
    """Let what was written aside take the place of an earlier export in the folder, and save facts for its card.

    Whoever is interrupted leaves a folder without a configuration, which nobody can load, and which the next export
    knows as one of its own.
    """
    made = sorted(path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file())
    names = [name for name in made if name == CONFIG or name.startswith(BASE_MODEL) or name.endswith(".safetensors")]
    saved = SavedFacts("mola", without_local_paths(facts, folder), written=SavedFacts.read(folder).written)
    with saved.recording(folder, {name: sha256_of(aside / name) for name in names}):
        (folder / CONFIG).unlink(missing_ok=True)
        if (folder / BASE_MODEL).is_dir():
            shutil.rmtree(folder / BASE_MODEL)
        for name in sorted(names, key=lambda name: name == CONFIG):  # that one last
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _like_any_other(aside / name)
            os.replace(aside / name, folder / name)


def _like_any_other(path: Path) -> None:
    """Give a file the permissions of any new one: safetensors makes some that nobody else may read."""
    like = path.with_name(f"{path.name}.new")
    like.touch(exist_ok=False)
    path.chmod(like.stat().st_mode & 0o777)
    like.unlink()
