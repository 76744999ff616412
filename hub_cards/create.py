"""The card of a trained folder, from what lies in it, what a run showed and what was said."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_ext.hub_cards.card import CARD_FILE, MethodCard
from hf_ext.hub_cards.folder import method_of, model_facts, read_config, settings_of, without_local_paths
from hf_ext.hub_cards.methods import METHODS
from hf_ext.hub_cards.pictures import draw_pictures, show_pictures
from hf_ext.hub_cards.saved import CARD_FIELDS, FACTS_FILE, SavedFacts

#: in cards that Trainer generates, until somebody has completed them
_TRAINERS_WORDS = "This model card has been generated automatically"
#: what peft adds to the form that it saves with an adapter
_PEFTS_LINE = re.compile(r"### Framework versions|- PEFT \S+")


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
    if unknown := sorted(({*facts} | {*(run or {})}) - CARD_FIELDS):
        raise ValueError(f"facts: found {unknown[0]!r}, allowed are {', '.join(sorted(CARD_FIELDS))}")
    if not overwrite:
        refuse_handwritten(folder)
    saved = SavedFacts.read(folder)
    saved.method = method or saved.method
    saved.said |= without_local_paths(facts, folder)
    if run is not None:
        saved.run = _joined(saved.run, without_local_paths(run, folder))
    saved = saved.as_read_back()
    card = _card(folder, saved)
    folder.mkdir(parents=True, exist_ok=True)
    draw_pictures(card, folder)
    show_pictures(card, folder)
    saved.sha256 = hashlib.sha256(card.content()).hexdigest()
    saved.write(folder)
    card.save(folder)
    return card


def is_handwritten(folder: str | os.PathLike[str]) -> bool:
    """Whether `README.md` holds somebody's words: it is not as `create_card` left it, nor peft's or Trainer's form."""
    path = Path(folder) / CARD_FILE
    if not path.is_file() or SavedFacts.read(Path(folder)).are_of_the_card_in(Path(folder)):
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
    saved = SavedFacts.read(folder)
    if not saved.are_of_the_card_in(folder):
        return {}
    card = dataclasses.replace(_card(folder, saved, repo_id.rpartition("/")[2]), place=repo_id)
    show_pictures(card, folder)
    content = card.content()
    saved.sha256 = hashlib.sha256(content).hexdigest()
    return {CARD_FILE: content, FACTS_FILE: saved.content()}


def _card(folder: Path, saved: SavedFacts, name: str | None = None) -> MethodCard:
    config = read_config(folder)
    owner = method_of(config)
    method = saved.method or owner
    if method is None:
        raise ValueError(f"method: found none for {str(folder)!r}, allowed are {sorted(METHODS)}")
    own_name = folder.resolve().name
    by_folder = {"model_name": name or own_name, "place": f"./{own_name}", **model_facts(config, folder)}
    if owner is not None and owner != method:
        by_folder["further_methods"] = [owner]
    card = MethodCard(**{**by_folder, **saved.run, **saved.said, "method": method})
    card.hyper_parameters = settings_of(config, card.about) | card.hyper_parameters
    if card.base_folder is None and (folder / "base_model" / "config.json").is_file():
        card.base_folder = "base_model"
    card.files = [code.file for about in card.about for code in about.further if (folder / code.file).is_file()]
    return card


def _joined(earlier: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """A run that trained says all; one that did not, what it knows better than the run before."""
    if "log_history" in run:
        return dict(run)
    return {**earlier, **run, "data": {**earlier.get("data", {}), **run.get("data", {})}}


def _lines(card: str) -> list[str]:
    """The lines of a card's text, without its header and without the empty ones."""
    body = ModelCard(card, ignore_metadata_errors=True).text
    return [line.rstrip() for line in body.splitlines() if line.strip()]
