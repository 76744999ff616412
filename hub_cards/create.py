"""The card of a trained folder, from what lies in it, what a run showed and what was said; kept there as JSON."""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_ext.hub_cards.card import CARD_FILE, MethodCard, Result, loss_entries
from hf_ext.hub_cards.methods import METHODS
from hf_ext.hub_cards.tasks import TASKS, auto_class_of
from hf_ext.hub_cards.text import without_path

FACTS_FILE = "hf_ext_card.json"
_CONFIGS = ("adapter_config.json", "config.json")
_FIELDS = {field.name for field in dataclasses.fields(MethodCard)}
_MAPPINGS = ("base_options", "data", "environment", "facts", "hyper_parameters")
_NOT_SETTINGS = {"architectures", "base_model_name_or_path", "inference_mode", "peft_version", "transformers_version"}
#: of an adapter, also where they are the defaults
_ALWAYS_SHOWN = ("r", "lora_alpha", "target_modules")
#: in cards that Trainer generates, until somebody has completed them
_TRAINERS_WORDS = "This model card has been generated automatically"
#: what peft adds to the form that it saves beside an adapter
_PEFTS_LINE = re.compile(r"### Framework versions|- PEFT \S+")


@dataclass
class _Kept:
    """What `hf_ext_card.json` holds.

    Args:
        method: the card's.
        said: arguments of `MethodCard` that a caller gave. They win.
        run: those that the last run showed. They win over the folder's configuration, which is read anew each time.
        sha256: of the `README.md` that was written, by which one is known that somebody has changed.
    """

    method: str | None = None
    said: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None


def create_card(
    folder: str | os.PathLike[str],
    method: str | None = None,
    *,
    run: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    **facts: Any,
) -> MethodCard:
    """Write the card of a trained folder: `README.md`, its pictures, and the facts as `hf_ext_card.json`.

    Facts come from `adapter_config.json` or `config.json` as they are now (hyper-parameters, base model, task), over
    these from the last run, and over those from the `facts` of this call and of earlier ones. Paths of this machine
    are not named: of data and in hyper-parameters the last part, of a base model nothing.

    Args:
        folder: of the trained model.
        method: a key of `METHODS`; by default what was said earlier or the adapter's type says.
        run: what a run has shown, as arguments of `MethodCard` (`CardCallback.card_facts()`). It takes the place of
            what an earlier run showed; one without `log_history` has not trained and leaves the facts of training.
        overwrite: whether to write over a `README.md` that somebody wrote or changed.
        **facts: arguments of `MethodCard`.

    Raises:
        ValueError: an unknown method or fact, files in the folder that cannot be read, or a `README.md` with words
            that are neither ours nor the unfilled form of peft or Trainer.
    """
    folder = Path(folder)
    if unknown := sorted(({*facts} | {*(run or {})}) - _FIELDS):
        raise ValueError(f"facts: found {unknown[0]!r}, allowed are {', '.join(sorted(_FIELDS))}")
    if not overwrite:
        refuse_handwritten(folder)
    kept = _read(folder)
    kept.method = method or kept.method
    kept.said |= _without_paths(facts, folder)
    if run is not None:
        kept.run = _joined(kept.run, _without_paths(run, folder))
    kept = _parse(_plain(dataclasses.asdict(kept)))  # as it will be read: the next card is the same
    card = _card(folder, kept)
    folder.mkdir(parents=True, exist_ok=True)
    for file, (_, draw) in _pictures(card).items():
        draw(str(folder / file))
    _show_pictures(card, folder)
    kept.sha256 = hashlib.sha256(card.content()).hexdigest()
    _write(kept, folder)
    card.save(folder)
    return card


def keep_facts(folder: str | os.PathLike[str], method: str, **facts: Any) -> None:
    """Leave facts for the card of a folder that is not made yet."""
    earlier = _read(Path(folder))
    _write(_Kept(method, _without_paths(facts, Path(folder)), sha256=earlier.sha256), Path(folder))


def is_ours(folder: str | os.PathLike[str]) -> bool:
    """Whether the card in a folder is one that `create_card` wrote."""
    return (Path(folder) / CARD_FILE).is_file() and (Path(folder) / FACTS_FILE).is_file()


def is_handwritten(folder: str | os.PathLike[str]) -> bool:
    """Whether `README.md` holds somebody's words: it is not as `create_card` left it, nor peft's or Trainer's form."""
    path = Path(folder) / CARD_FILE
    if not path.is_file() or _is_untouched(Path(folder), _read(Path(folder))):
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    if _TRAINERS_WORDS in text:
        return False
    lines, form = _lines(text), _lines(str(ModelCard.from_template(ModelCardData())))
    return lines[: len(form)] != form or not all(map(_PEFTS_LINE.fullmatch, lines[len(form) :]))


def refuse_handwritten(folder: str | os.PathLike[str]) -> None:
    """Raise ValueError if `create_card` would write over somebody's words."""
    if is_handwritten(folder):
        path = str(Path(folder) / CARD_FILE)
        raise ValueError(f"folder: found {path!r} with text of somebody's, allowed is to move it or overwrite=True")


def card_at(folder: Path, repo_id: str) -> dict[str, bytes]:
    """The card's files as a repo of the Hub has them, from where it loads; none if it is not (or no longer) ours."""
    kept = _read(folder)
    if not _is_untouched(folder, kept):
        return {}
    card = dataclasses.replace(_card(folder, kept, repo_id.rpartition("/")[2]), place=repo_id)
    _show_pictures(card, folder)
    content = card.content()
    kept.sha256 = hashlib.sha256(content).hexdigest()
    return {CARD_FILE: content, FACTS_FILE: _json(kept)}


def _card(folder: Path, kept: _Kept, name: str | None = None) -> MethodCard:
    config = _config(folder)
    owner = _method_of(config)
    method = kept.method or owner
    if method is None:
        raise ValueError(f"method: found none for {str(folder)!r}, allowed are {sorted(METHODS)}")
    own_name = folder.resolve().name
    found = {"model_name": name or own_name, "place": f"./{own_name}", **_without_paths(_model_facts(config), folder)}
    if owner is not None and owner != method:
        found["further_methods"] = [owner]
    card = MethodCard(**{**found, **kept.run, **kept.said, "method": method})
    card.hyper_parameters = _settings(config, card) | card.hyper_parameters
    if card.base_folder is None and (folder / "base_model" / "config.json").is_file():
        card.base_folder = "base_model"
    card.files = [code.file for about in card.about for code in about.further if (folder / code.file).is_file()]
    return card


# ------------------------------------------------------------------------------------------------ files
def _config(folder: Path) -> dict[str, Any]:
    path = next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)
    return {} if path is None else _read_json(path)


def _read(folder: Path) -> _Kept:
    path = folder / FACTS_FILE
    if not path.is_file():
        return _Kept()
    try:
        return _parse(_read_json(path))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"folder: found a broken {str(path)!r} ({error}), allowed is what create_card wrote"
        ) from None


def _parse(values: Mapping[str, Any]) -> _Kept:
    kept = _Kept(**{name: values[name] for name in ("method", "said", "run", "sha256") if name in values})
    kept.said, kept.run = _parse_facts(kept.said), _parse_facts(kept.run)
    return kept


def _parse_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: value for name, value in dict(values).items() if name in _FIELDS}
    for name in _MAPPINGS & facts.keys():
        facts[name] = dict(facts[name] or {})
    if "results" in facts:
        facts["results"] = [Result(**row) for row in facts["results"]]
    if "plots" in facts:
        facts["plots"] = [(str(file), str(caption)) for file, caption in facts["plots"]]
    if "log_history" in facts:
        facts["log_history"] = [{name: _number(dict(row)[name]) for name in row} for row in facts["log_history"]]
    if "data" in facts:
        facts["data"] = {name: dict(split) for name, split in facts["data"].items()}
    return facts


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"folder: found a broken {str(path)!r} ({error}), allowed is JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"folder: found a {type(found).__name__} in {str(path)!r}, allowed is a JSON object")
    return found


def _json(kept: _Kept) -> bytes:
    return json.dumps(_plain(dataclasses.asdict(kept)), indent=1).encode()


def _write(kept: _Kept, folder: Path) -> None:
    part = folder / f".{FACTS_FILE}.part"
    part.write_bytes(_json(kept))
    os.replace(part, folder / FACTS_FILE)


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers and tables in place of arrays and tensors, words in place of what is no number."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _is_untouched(folder: Path, kept: _Kept) -> bool:
    path = folder / CARD_FILE
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == kept.sha256


def _lines(card: str) -> list[str]:
    """The lines of a card's text, without its header and without the empty ones."""
    body = ModelCard(card, ignore_metadata_errors=True).text
    return [line.rstrip() for line in body.splitlines() if line.strip()]


# ------------------------------------------------------------------------------------------------ facts
def _joined(earlier: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """A run that trained says all; one that did not, what it knows better than the run before."""
    if "log_history" in run:
        return dict(run)
    return {**earlier, **run, "data": {**earlier.get("data", {}), **run.get("data", {})}}


def _without_paths(facts: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The facts without paths of this machine."""
    public = dict(facts)
    if public.get("base_model") and not is_hub_id(str(public["base_model"]), folder):
        public["base_model"] = None
    if public.get("dataset"):
        public["dataset"] = ", ".join(map(without_path, str(public["dataset"]).split(", ")))
    if public.get("hyper_parameters"):
        public["hyper_parameters"] = _public(public["hyper_parameters"])
    return public


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: without_path(str(value)) if isinstance(value, str | os.PathLike) else value
        for name, value in settings.items()
    }


def _method_of(config: Mapping[str, Any]) -> str | None:
    """The method that an adapter's type (or a model's) is named after."""
    kinds = (str(config.get(key, "")).lower() for key in ("peft_type", "model_type"))
    return next((kind for kind in kinds if kind in METHODS), None)


def _settings(config: Mapping[str, Any], card: MethodCard) -> dict[str, Any]:
    """What the methods pick; of an adapter of no method that picks, what its configuration does not say by itself."""
    owner = METHODS.get(_method_of(config) or "")
    shown: dict[str, Any] = {}
    if card.adapter and not (owner and owner.settings):
        shown = _of_adapter(config)
    for method in card.about:
        shown |= method.settings(config) if method.settings else {}
    return _public(shown)


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


def _model_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the model, be it whole or an adapter's."""
    if not config:
        return {}
    adapter = config.get("peft_type")
    found = {"adapter": adapter, "library_name": "peft" if adapter else "transformers"}
    wrapped, architectures = config.get("auto_mapping"), config.get("architectures")
    model_class = wrapped.get("base_model_class") if isinstance(wrapped, dict) else None
    if isinstance(architectures, list) and architectures:
        model_class = architectures[0]
    auto_class = auto_class_of(config.get("task_type"), model_class)
    if auto_class:
        found |= {"auto_class": auto_class, "task": TASKS[auto_class][0]}
    return found | {"base_model": config.get("base_model_name_or_path")}


def is_hub_id(name: str, folder: Path) -> bool:
    """Whether a model's name can be one of the Hub's: it has that form, and no folder here has it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists() and not (folder / name).exists()


# ------------------------------------------------------------------------------------------------ pictures
def _pictures(card: MethodCard) -> dict[str, tuple[str, Callable[[str], None]]]:
    """Captions by file of what the facts allow to draw, and what draws it."""
    from hf_ext.hub_cards.plots import plot_losses, plot_results  # matplotlib takes its time

    pictures: dict[str, tuple[str, Callable[[str], None]]] = {}
    metrics = {result.metric for result in card.overall}
    for metric in sorted(metrics):
        rows = [result for result in card.overall if result.metric == metric]
        # two numbers need no picture
        if len({row.system for row in rows}) > 1 and (len(rows) > 2 or any(row.std for row in rows)):
            file = "results.png" if len(metrics) == 1 else f"results_{len(pictures)}.png"
            pictures[file] = (f"All systems: {metric}", partial(plot_results, rows))
    for method in card.about:
        for picture in method.pictures:
            if picture.fact in card.facts:
                pictures[picture.file] = (picture.caption, partial(picture.draw, card.facts[picture.fact]))
    if loss_entries(card.log_history):
        pictures["losses.png"] = ("Terms of the training loss", partial(plot_losses, card.log_history))
    return pictures


def _show_pictures(card: MethodCard, folder: Path) -> None:
    """Show those that were drawn and those that were given, as far as they are in the folder."""
    captions = {file: caption for file, (caption, _) in _pictures(card).items()} | dict(card.plots)
    card.plots = [(file, caption) for file, caption in captions.items() if (folder / file).is_file()]
