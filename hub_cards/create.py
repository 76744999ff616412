"""The card of a trained folder, from what lies in it; kept there as JSON, so that it can be made anew."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_ext.hub_cards.card import CARD_FILE, TASKS, MethodCard, Result, loss_entries
from hf_ext.hub_cards.methods import METHODS

FACTS_FILE = "hf_ext_card.json"
_CONFIGS = ("adapter_config.json", "config.json")
_FIELDS = {field.name for field in dataclasses.fields(MethodCard)}
_NOT_SETTINGS = {"architectures", "base_model_name_or_path", "inference_mode", "peft_version", "transformers_version"}


def create_card(folder: str | os.PathLike[str], method: str | None = None, **facts: Any) -> MethodCard:
    """Write the card of a trained folder: `README.md`, its pictures, and the facts as `hf_ext_card.json`.

    Facts come from `adapter_config.json` or `config.json` (hyper-parameters, base model, task), from the facts that an
    earlier call or a `CardCallback` left, and from this call, which wins. A base model that is a path of this machine
    is not named.

    Args:
        folder: of the trained model.
        method: a key of `METHODS`; by default what the facts or the adapter's type say.
        **facts: arguments of `MethodCard`.

    Raises:
        ValueError: an unknown method or fact, or files in the folder that cannot be read.
    """
    folder = Path(folder)
    if unknown := sorted(set(facts) - _FIELDS):
        raise ValueError(f"facts: found {unknown[0]!r}, allowed are {', '.join(sorted(_FIELDS))}")
    config, earlier = _config(folder), _read(folder)
    method = method or earlier.get("method") or _method_of(config)
    if method is None:
        raise ValueError(f"method: found none for {str(folder)!r}, allowed are {sorted(METHODS)}")
    found: dict[str, Any] = {"model_name": folder.resolve().name, "place": f"./{folder.resolve().name}"}
    if config and not (folder / "adapter_config.json").is_file():
        found["library_name"] = "transformers"
    if config:
        found |= _task_facts(config.get("task_type"))
        found["base_model"] = config.get("base_model_name_or_path")
        adapter = _method_of(config)
        if adapter is not None and adapter != method:
            found["further_methods"] = [adapter]
    given = {**found, **earlier, **facts, "method": method}
    given["hyper_parameters"] = _settings(config) | dict(given.get("hyper_parameters") or {})
    card = MethodCard(**given)
    if card.base_model and not is_hub_id(card.base_model, folder):
        card.base_model = None
    if card.base_folder is None and (folder / "base_model" / "config.json").is_file():
        card.base_folder = "base_model"
    folder.mkdir(parents=True, exist_ok=True)
    card.plots = _draw(card, folder)
    _write(card, folder)
    card.save(folder)
    return card


def is_ours(folder: str | os.PathLike[str]) -> bool:
    """Whether the card in a folder is one that `create_card` wrote."""
    return (Path(folder) / CARD_FILE).is_file() and (Path(folder) / FACTS_FILE).is_file()


def card_at(folder: Path, repo_id: str) -> bytes | None:
    """The folder's card with a snippet that loads from the Hub, or None if the card is not (or no longer) ours."""
    if not is_ours(folder):
        return None
    card = MethodCard(**_read(folder))
    if card.render().encode(errors="replace") != (folder / CARD_FILE).read_bytes():
        return None  # someone has written in it
    return dataclasses.replace(card, place=repo_id).render().encode(errors="replace")


# ------------------------------------------------------------------------------------------------ files
def _config(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)
    return {} if path is None else _read_json(path)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_FILE
    if not path.is_file():
        return {}
    facts = {name: value for name, value in _read_json(path).items() if name in _FIELDS}
    try:
        facts["results"] = [Result(**row) for row in facts.get("results", ())]
        facts["plots"] = [(str(file), str(caption)) for file, caption in facts.get("plots", ())]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"folder: found a broken {str(path)!r} ({error}), allowed is what create_card wrote"
        ) from None
    return facts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"folder: found a broken {str(path)!r} ({error}), allowed is JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"folder: found a {type(found).__name__} in {str(path)!r}, allowed is a JSON object")
    return found


def _write(card: MethodCard, folder: Path) -> None:
    part = folder / f".{FACTS_FILE}.part"
    values = _plain(dataclasses.asdict(card))
    part.write_text(json.dumps(values, indent=1), encoding="utf-8")
    os.replace(part, folder / FACTS_FILE)


def _plain(value: Any) -> Any:
    """What JSON can hold and give back the same."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


# ------------------------------------------------------------------------------------------------ facts
def _method_of(config: Mapping[str, Any]) -> str | None:
    """The method that an adapter's type (or a model's) is named after."""
    kinds = (str(config.get(key, "")).lower() for key in ("peft_type", "model_type"))
    return next((kind for kind in kinds if kind in METHODS), None)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    method = _method_of(config)
    shown = METHODS[method].settings if method else None
    return (
        dict(shown(config)) if shown else {name: value for name, value in config.items() if _is_setting(name, value)}
    )


def _is_setting(name: str, value: Any) -> bool:
    empty = value is None or value is False or value in ("", [])
    return not empty and not isinstance(value, dict) and name not in _NOT_SETTINGS


def _task_facts(peft_task: str | None) -> dict[str, str]:
    tasks = [task for task, (name, _) in TASKS.items() if name is not None and name == peft_task]
    return {"task": tasks[0]} if tasks else {}


def is_hub_id(name: str, folder: Path) -> bool:
    """Whether a model's name can be one of the Hub's: it has that form, and no folder here has it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists() and not (folder / name).exists()


# ------------------------------------------------------------------------------------------------ pictures
def _draw(card: MethodCard, folder: Path) -> list[tuple[str, str]]:
    """Draw what the facts allow; returns all pictures that are in the folder."""
    from hf_ext.hub_cards.plots import plot_losses, plot_results  # matplotlib takes its time

    drawn: dict[str, str] = {}
    metrics = {result.metric for result in card.overall}
    for metric in sorted(metrics):
        rows = [result for result in card.overall if result.metric == metric]
        if len({result.system for result in rows}) > 1:
            file = "results.png" if len(metrics) == 1 else f"results_{len(drawn)}.png"
            plot_results(rows, folder / file)
            drawn[file] = f"All systems: {metric}"
    for method in card.about:
        for picture in method.pictures:
            if picture.fact in card.facts:
                picture.draw(card.facts[picture.fact], str(folder / picture.file))
                drawn[picture.file] = picture.caption
    if loss_entries(card.log_history):
        plot_losses(card.log_history, folder / "losses.png")
        drawn["losses.png"] = "Terms of the training loss"
    kept = {file: caption for file, caption in card.plots if (folder / file).is_file()}
    return list((drawn | kept).items())
