"""What the configuration in a trained folder says of the model, without paths of this machine."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_ext._files import read_json
from hf_ext.hub_cards.methods import METHODS, Method
from hf_ext.hub_cards.tasks import TASKS, auto_class_of
from hf_ext.hub_cards.text import is_place, without_path, without_paths

_CONFIGS = ("adapter_config.json", "config.json")
_NOT_SETTINGS = {"architectures", "base_model_name_or_path", "inference_mode", "peft_version", "transformers_version"}
#: of an adapter, also where they are the defaults
_ALWAYS_SHOWN = ("r", "lora_alpha", "target_modules")


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration, or else the model's; empty if there is neither.

    Raises:
        ValueError: a file that is no JSON object.
    """
    path = next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)
    return {} if path is None else read_json(path, "folder")


def method_of(config: Mapping[str, Any]) -> str | None:
    """The method that an adapter's type (or a model's) is named after."""
    kinds = (str(config.get(key, "")).lower() for key in ("peft_type", "model_type"))
    return next((kind for kind in kinds if kind in METHODS), None)


def model_facts(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a configuration says of the model, be it whole or an adapter's, as arguments of `MethodCard`."""
    if not config:
        return {}
    adapter = config.get("peft_type")
    facts = {"adapter": adapter, "library_name": "peft" if adapter else "transformers"}
    wrapped, architectures = config.get("auto_mapping"), config.get("architectures")
    model_class = wrapped.get("base_model_class") if isinstance(wrapped, dict) else None
    if isinstance(architectures, list) and architectures:
        model_class = architectures[0]
    auto_class = auto_class_of(config.get("task_type"), model_class)
    if auto_class:
        facts |= {"auto_class": auto_class, "task": TASKS[auto_class][0]}
    return without_local_paths(facts | {"base_model": config.get("base_model_name_or_path")}, folder)


# ------------------------------------------------------------------------------------------------ hyper-parameters
def settings_of(config: Mapping[str, Any], methods: Iterable[Method]) -> dict[str, Any]:
    """What the methods pick; of an adapter of no method that picks, what its configuration does not say by itself."""
    owner = METHODS.get(method_of(config) or "")
    shown: dict[str, Any] = {}
    if config.get("peft_type") and not (owner and owner.settings):
        shown = _of_adapter(config)
    for method in methods:
        shown |= method.settings(config) if method.settings else {}
    return dict(without_paths(shown))


def _of_adapter(config: Mapping[str, Any]) -> dict[str, Any]:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING  # takes its time

    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(config["peft_type"])
    defaults = {} if kind is None else {field.name: field.default for field in dataclasses.fields(kind)}
    shown = {
        name: value
        for name, value in config.items()
        if _is_setting(name, value) and (name in _ALWAYS_SHOWN or name not in defaults or defaults[name] != value)
    }
    if isinstance(targets := shown.get("target_modules"), list):
        shown["target_modules"] = sorted(targets)  # a set's, in any order
    return shown


def _is_setting(name: str, value: Any) -> bool:
    empty = value is None or value is False or value in ("", [])
    return not empty and not isinstance(value, dict) and name not in _NOT_SETTINGS


# ------------------------------------------------------------------------------------------------ paths
def is_hub_id(name: str, folder: Path) -> bool:
    """Whether a model's name can be one of the Hub's: it has that form, and no folder here has it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not is_place(name) and not Path(name).exists() and not (folder / name).exists()


def without_local_paths(facts: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Arguments of `MethodCard` without paths of this machine; `folder` is the card's."""
    public = dict(facts)
    if public.get("base_model") and not is_hub_id(str(public["base_model"]), folder):
        public["base_model"] = None
    if public.get("dataset"):
        public["dataset"] = ", ".join(map(without_path, str(public["dataset"]).split(", ")))
    for name in ("hyper_parameters", "environment", "base_options", "data"):
        if public.get(name):
            public[name] = without_paths(public[name])
    return public
