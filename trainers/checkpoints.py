"""Checkpoints that survive a kill: which one is complete, a method's own state in it, weights restored in full."""

import json
import os
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_ext._files import read_json, replaced_file, write_atomically

_TRAINER_STATE = "trainer_state.json"  # Trainer writes it last
_STATE_TENSORS = "method_state.safetensors"
_STATE_VALUES = "method_state.json"


def is_complete(folder: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint was written to its end: Trainer writes `trainer_state.json` last."""
    try:
        read_json(Path(folder) / _TRAINER_STATE)
    except (OSError, ValueError):
        return False
    return True


def newest_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The checkpoint folder with the highest step that is complete, or `None`."""
    if not os.path.isdir(output_dir):
        return None
    steps = {}
    for folder in Path(output_dir).iterdir():
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
        if match and is_complete(folder):
            steps[int(match[1])] = str(folder)
    return steps[max(steps)] if steps else None


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
