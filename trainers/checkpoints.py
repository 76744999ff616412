"""Checkpoints that survive a kill: which one is complete, a method's own state in it, weights restored in full."""

import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_ext._files import read_json, replaced_file, write_atomically
from hf_ext.trainers.manifest import MANIFEST, UNFINISHED, fault_by_manifest, files_of, has_manifest

TRAINER_STATE = "trainer_state.json"  # of Trainer's own files the last one
_STATE_TENSORS = "method_state.safetensors"
_STATE_VALUES = "method_state.json"
#: parts of a checkpoint by name: patterns of files or folders, any of which holds them
_WEIGHTS = ("model*.safetensors", "adapter_model.*", "pytorch_model*", "*_model_states.pt")
_STATES = {
    "optimizer.pt": ("*optim*",),
    "scheduler.pt": ("scheduler.pt", "*_optim_states.pt"),  # DeepSpeed has both in one
    "rng_state.pth": ("rng_state*.pth",),
}
_READ = (
    *("*.safetensors", "*.index.json", TRAINER_STATE, _STATE_VALUES, "config.json", "adapter_config.json"),
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "pytorch_model*.bin", "adapter_model.bin"),
)


def unmark(folder: str | os.PathLike[str]) -> None:
    """Remove what says that a checkpoint is complete, before others of the same step take the place of its files."""
    for name in (MANIFEST, TRAINER_STATE):
        (Path(folder) / name).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ which is complete
def fault_of(folder: str | os.PathLike[str], *, needs_state: bool = True) -> str | None:
    """What is wrong with a checkpoint, in words that name the file; None if it is complete.

    With a manifest that is whatever is not as it was saved. Without one (a plain Trainer's, one of an older version,
    or one whose saving was killed at its very end) the files that must be there are looked at: weights, Trainer's
    state and, with `needs_state`, that of optimizer, scheduler and random numbers. They have to be readable, and these
    three have checksums of their own.

    Args:
        folder: of the checkpoint.
        needs_state: False where `save_only_model` says that weights are enough.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "no such folder"
    if has_manifest(folder):
        return fault_by_manifest(folder)
    if (folder / UNFINISHED).exists():
        return f"a {UNFINISHED!r} (saving was interrupted)"
    names = files_of(folder)
    needed = {"model.safetensors": _WEIGHTS} | (_STATES if needs_state else {})
    missing = next((name for name, patterns in needed.items() if not _any_of(names, patterns)), None)
    if TRAINER_STATE not in names:  # in the folder itself: one of several checkpoints is none
        missing = TRAINER_STATE
    if missing is not None:
        return f"no {missing!r} (saving was interrupted, or it was removed: without {MANIFEST!r} nobody knows)"
    return _unreadable_of(folder, names)


def fault_of_weights(folder: str | os.PathLike[str]) -> str | None:
    """As `fault_of`, for the model's files alone."""
    folder = Path(folder)
    if has_manifest(folder):
        return fault_by_manifest(folder, lambda name: _any_of([name], _WEIGHTS))
    names = [name for name in files_of(folder) if _any_of([name], _WEIGHTS)]
    return _unreadable_of(folder, names) if names else "no weights"


def states_left_out(folder: str | os.PathLike[str], *, process: int | None, scales_loss: bool) -> list[str]:
    """What of Trainer's state a complete checkpoint does not have, by names of files; Trainer starts these anew.

    Args:
        folder: of the checkpoint.
        process: which of several; None for the only one.
        scales_loss: whether there is a loss scaler (fp16).
    """
    rng = "rng_state.pth" if process is None else f"rng_state_{process}.pth"
    states = _STATES | {rng: (rng,)} | ({"scaler.pt": ("scaler.pt",)} if scales_loss else {})
    if rng != "rng_state.pth":
        del states["rng_state.pth"]
    names = files_of(folder)
    return [name for name, patterns in states.items() if not _any_of(names, patterns)]


def newest_complete_checkpoint(output_dir: str | os.PathLike[str], *, needs_state: bool = True) -> str:
    """The checkpoint folder with the highest step that is complete; a warning says what is wrong with newer ones.

    Raises:
        ValueError: there is none; it begins as Trainer's own, and says what is wrong with the newest.
    """
    faults: dict[str, str] = {}
    for folder in _newest_first(Path(output_dir)):
        fault = fault_of(folder, needs_state=needs_state)
        if fault is None:
            if faults:
                newer = "; ".join(f"in {name} {found}" for name, found in faults.items())
                warnings.warn(f"resume_from_checkpoint: found {newer}; {folder.name} is taken instead", stacklevel=2)
            return str(folder)
        faults[folder.name] = fault
    newest = "".join(f" (in {name} {found})" for name, found in list(faults.items())[:1])
    raise ValueError(
        f"No valid checkpoint found in output directory ({os.fspath(output_dir)}): resume_from_checkpoint: found no "
        f"complete checkpoint{newest}, allowed is a folder with one"
    )


def check_checkpoint(folder: str | os.PathLike[str], *, needs_state: bool = True) -> str:
    """The folder, if it is a complete checkpoint.

    Raises:
        ValueError: it is not; the error begins as Trainer's own, and says which file is what.
    """
    if (fault := fault_of(folder, needs_state=needs_state)) is not None:
        raise ValueError(
            f"Can't find a valid checkpoint at {os.fspath(folder)}: resume_from_checkpoint: found {fault}, allowed is "
            "a complete checkpoint, with its files as they were saved"
        )
    return os.fspath(folder)


def _newest_first(output_dir: Path) -> list[Path]:
    if not output_dir.is_dir():
        return []
    matches = ((re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name), path) for path in output_dir.iterdir())
    steps = [(int(match[1]), path) for match, path in matches if match and path.is_dir()]
    return [path for _, path in sorted(steps, reverse=True)]


def _any_of(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether a file, or a folder that it is in, is called like that."""
    parts = {part for name in names for part in name.split("/")}
    return any(fnmatchcase(part, pattern) for part in parts for pattern in patterns)


# ------------------------------------------------------------------------------------------------ readable files
def _unreadable_of(folder: Path, names: Iterable[str]) -> str | None:
    for name in names:
        if _any_of([name.rpartition("/")[2]], _READ):
            try:
                _read_through(folder / name)
            except (SafetensorError, zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError, OSError) as error:
                return f"an unreadable {name!r}, which may be truncated ({error})"
    return None


def _read_through(path: Path) -> None:
    """Raises something if the file is not what its name says."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):  # holds the header against the size
            pass
    elif path.name == TRAINER_STATE:
        steps = TrainerState.load_from_json(str(path)).global_step
        if not isinstance(steps, int) or "global_step" not in read_json(path):
            raise ValueError("it names no step")
    elif path.suffix == ".json":
        values = read_json(path)
        if path.name.endswith(".index.json"):
            missing = [name for name in values["weight_map"].values() if not path.with_name(name).is_file()]
            if missing:
                raise ValueError(f"it names {missing[0]!r}, which is not there")
    else:
        with zipfile.ZipFile(path) as archive:
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"its entry {broken!r} has changed")


# ------------------------------------------------------------------------------------------------ a method's state
def write_state(folder: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a method's state: tensors to safetensors, the rest to JSON, each file complete or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    values = {name: value for name, value in state.items() if name not in tensors}
    with replaced_file(folder / _STATE_TENSORS) as file:
        save_file(tensors, file)
    write_atomically(folder / _STATE_VALUES, json.dumps(values))


def read_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_state` wrote; empty if it wrote nothing."""
    folder = Path(folder)
    if not (folder / _STATE_VALUES).is_file():
        return {}
    return {**load_file(folder / _STATE_TENSORS), **read_json(folder / _STATE_VALUES)}


# ------------------------------------------------------------------------------------------------ weights
def restore_weights(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Make sure that `model` has all weights of a checkpoint that Trainer has just loaded into it.

    Trainer loads by the names in the file and lets missing ones be. Where a class saves under older names (ViT does),
    that silently keeps fresh weights; so the weights go through the class's own conversion here.

    Raises:
        ValueError: weights of the model that the checkpoint does not have, under any name.
    """
    saved = _saved_names(Path(folder))
    expected = set(model.state_dict())
    if saved is None or expected == saved:
        return
    missing = expected - saved - set(getattr(model, "all_tied_weights_keys", None) or ())
    if isinstance(model, PreTrainedModel):
        loaded: Any = type(model).from_pretrained(
            folder, config=model.config, dtype=model.dtype, output_loading_info=True
        )
        restored, report = loaded
        missing = set(report["missing_keys"]) | {str(key) for key in report["mismatched_keys"]}
        if not missing:
            model.load_state_dict(restored.state_dict())
    if missing:
        raise ValueError(
            f"resume_from_checkpoint: found {os.fspath(folder)!r} without {len(missing)} weights of "
            f"{type(model).__name__} ({', '.join(sorted(missing)[:3])}, ...), allowed is a checkpoint of this model"
        )


def _saved_names(folder: Path) -> set[str] | None:
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        return set(read_json(folder / SAFE_WEIGHTS_INDEX_NAME)["weight_map"])
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        with safe_open(folder / SAFE_WEIGHTS_NAME, framework="pt") as file:
            return set(file.keys())
    return None
