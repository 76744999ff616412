"""What of a folder goes to the Hub, and folders that cannot."""

import os
import unicodedata
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_ext._files import is_regular, read_json
from hf_ext.hub_cards.card import CARD_FILE

ADAPTER_CONFIG = "adapter_config.json"
_CONFIGS = (ADAPTER_CONFIG, "config.json")
#: names of files and folders that are never sent: pickles, states to resume from, logs, what is hidden or half written
NOT_SENT = (
    *("*.bin", "*.ckpt", "*.dill", "*.distcp", "*.joblib", "*.npy", "*.npz"),
    *("*.pickle", "*.pk", "*.pkl", "*.pt", "*.pth", "*.pth.tar"),
    *("checkpoint-*", "global_step*", "optimizer.*", "optimizer_[0-9]*", "rng_state*", "scaler.*", "scheduler.*"),
    *("round-[0-9]*",),  # states of a federation
    *("edge_weights.safetensors", "ranked.csv"),  # a user's graph: which nodes are joined, and which are positive
    *("causald_effects", "causald_teachers"),  # what a recommender has learned from
    *(".*", "*.part", "__pycache__", "events.out.tfevents*", "runs"),
)


def files_to_send(folder: Path) -> dict[str, Path]:
    """Names in the repo and paths of all files to send; nothing is opened.

    Raises:
        ValueError: no folder; a link that leads out of it; a pipe, socket or device; a name that the Hub, or a clone
            of its repo on another system, cannot have.
    """
    if not folder.is_dir():
        raise ValueError(f"folder: found no folder {str(folder)!r}, allowed is one that a training wrote")
    root, files = folder.resolve(), {}
    for parent, folders, names in os.walk(folder):
        # what stays at home is not looked into: checkpoints come and go while a run's folder is sent
        folders[:] = filter(_is_sent, folders)
        for path in (Path(parent, name) for name in (*folders, *filter(_is_sent, names))):
            relative = path.relative_to(folder).as_posix()
            _check_name(relative, path.name)
            if path.is_symlink() and not (is_regular(path) and path.resolve().is_relative_to(root)):
                link = f"a link {relative!r} to {str(path.readlink())!r}"
                raise ValueError(f"folder: found {link}, allowed are links to files of the same folder")
            if is_regular(path):
                files[relative] = path
            elif os.path.lexists(path) and not path.is_dir():
                raise ValueError(f"folder: found {relative!r}, a pipe, socket or device, allowed are files")
    return dict(sorted(files.items()))


def _is_sent(name: str) -> bool:
    return not any(fnmatchcase(name.lower(), pattern) for pattern in NOT_SENT)


def _check_name(relative: str, name: str) -> None:
    odd = {char for char in name if char == "\\" or unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    if odd or name.startswith("-") or name != name.strip():
        raise ValueError(
            f"folder: found the name {relative!r}, allowed are names in UTF-8 without control characters, "
            "backslashes, a dash at the beginning or spaces around them: rename it"
        )


def check_folder(folder: Path, files: Mapping[str, Path]) -> None:
    """Refuse a folder that nobody could load from the Hub.

    Raises:
        ValueError: no configuration, weights or card, or some that are broken.
    """
    config = next((files[name] for name in _CONFIGS if name in files), None)
    if config is None:
        raise ValueError(f"folder: found neither of {', '.join(_CONFIGS)} in {str(folder)!r}, allowed is one of them")
    read_json(config, "folder")
    weights = [path for name, path in files.items() if name.endswith(".safetensors")]
    if not any(path.parent == folder for path in weights):
        raise ValueError(f"folder: found no *.safetensors in {str(folder)!r}, allowed are weights in that format only")
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):  # reads the header and holds it against the file's size
                pass
        except SafetensorError as error:
            raise ValueError(f"folder: found a broken {str(path)!r} ({error}), allowed are whole files") from None
    for name, path in files.items():
        is_index = name.endswith(".safetensors.index.json")
        missing = sorted(_shards(name, read_json(path, "folder")) - set(files)) if is_index else []
        if missing:
            raise ValueError(f"folder: found no {missing[0]!r} of {name!r}, allowed are all files of the index")
    if CARD_FILE not in files:
        raise ValueError(f"folder: found no README.md in {str(folder)!r}, allowed is one: make it with create_card")
    try:
        files[CARD_FILE].read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"folder: found a README.md in {str(folder)!r} that is no UTF-8 ({error})") from None


def _shards(name: str, index: Mapping[str, Any]) -> set[str]:
    """The files that an index of shards names, as they are called in the repo."""
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"folder: found no map of weights to files in {name!r}, allowed is an index of shards")
    return {os.path.join(os.path.dirname(name), shard) for shard in shards.values()}
