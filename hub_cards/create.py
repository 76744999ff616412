"""The card of a trained folder, from what lies in it, what a run showed and what was said."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_ext._files import is_regular, sha256_of, write_atomically
from hf_ext.hub_cards.card import CARD_FILE, MethodCard, checked_facts
from hf_ext.hub_cards.folder import method_of, model_facts, read_config, settings_of, without_local_paths
from hf_ext.hub_cards.forms import facts_of_form
from hf_ext.hub_cards.methods import METHODS
from hf_ext.hub_cards.pictures import captions_of, drawn_pictures
from hf_ext.hub_cards.saved import CARD_FIELDS, FACTS_FILE, SavedFacts


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

    What was written is known by its SHA-256, also after a kill in the middle. A picture's file that somebody else has
    put there or changed stays as it is, with a warning, and is shown only if `plots` names it. The unfilled form that
    peft or Trainer leaves is replaced; a licence and tags in its header are kept.

    Args:
        folder: of the trained model.
        method: a key of `METHODS`; by default what was said earlier or the adapter's type says.
        run: what a run has shown, as arguments of `MethodCard` (`CardCallback.card_facts()`). It takes the place of
            what an earlier run showed; one without `log_history` has not trained and leaves the facts of training.
        overwrite: whether to write over a `README.md` that somebody wrote or changed. Pictures stay even then.
        **facts: arguments of `MethodCard`.

    Raises:
        ValueError: an unknown method or fact, a fact of another type, files in the folder that cannot be read, or a
            `README.md` that is neither ours nor the unfilled form of peft or Trainer.
    """
    folder = Path(folder)
    if unknown := sorted(({*facts} | {*(run or {})}) - CARD_FIELDS):
        raise ValueError(f"facts: found {unknown[0]!r}, allowed are {', '.join(sorted(CARD_FIELDS))}")
    if not overwrite:
        refuse_handwritten(folder)
    saved = SavedFacts.read(folder)
    saved.method = method or saved.method
    saved.said |= (_form_in(folder) or {}) | without_local_paths(checked_facts(facts), folder)
    if run is not None:
        saved.run = _joined(saved.run, without_local_paths(checked_facts(run), folder))
    saved = saved.as_read_back()
    card = _card(folder, saved)
    pictures = drawn_pictures(card)
    folder.mkdir(parents=True, exist_ok=True)
    for file in [file for file, content in pictures.items() if _is_somebodys(folder, file, content, saved)]:
        warnings.warn(f"{folder / file} is not as create_card left it: it is kept, and not shown", stacklevel=2)
        del pictures[file]
    own = {file: caption for file, caption in captions_of(card).items() if file in pictures}
    card.plots = _shown(own | dict(card.plots), folder, pictures)
    files = {**pictures, CARD_FILE: card.content()}
    with saved.recording(folder, {file: sha256_of(content) for file, content in files.items()}):
        for file, content in files.items():
            write_atomically(folder / file, content)
    return card


def is_handwritten(folder: str | os.PathLike[str]) -> bool:
    """Whether `README.md` is somebody's: not as `create_card` left it, nor peft's or Trainer's unfilled form."""
    folder = Path(folder)
    if not os.path.lexists(folder / CARD_FILE) or SavedFacts.read(folder).are_ours(folder, CARD_FILE):
        return False
    return _form_in(folder) is None


def refuse_handwritten(folder: str | os.PathLike[str]) -> None:
    """Raise ValueError if `create_card` would write over somebody's words."""
    if is_handwritten(folder):
        path = str(Path(folder) / CARD_FILE)
        raise ValueError(f"folder: found {path!r} with text of somebody's, allowed is to move it or overwrite=True")


def _form_in(folder: Path) -> dict[str, Any] | None:
    """What the unfilled form in a folder says; None if `README.md` is something else: a link is somebody's."""
    path = folder / CARD_FILE
    if path.is_symlink() or not is_regular(path):
        return None
    base = read_config(folder).get("base_model_name_or_path")
    return facts_of_form(path.read_text(encoding="utf-8", errors="replace"), base)


def _is_somebodys(folder: Path, file: str, content: bytes, saved: SavedFacts) -> bool:
    """Whether a file is there that is neither ours nor the same as what would take its place."""
    path = folder / file
    if not os.path.lexists(path) or saved.are_ours(folder, file):
        return False
    return path.is_symlink() or not is_regular(path) or path.read_bytes() != content


def _shown(captions: Mapping[str, str], folder: Path, pictures: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Pictures that are there, or will be."""
    return [(file, caption) for file, caption in captions.items() if file in pictures or (folder / file).is_file()]


def card_at(folder: Path, repo_id: str, license: str | None = None) -> dict[str, bytes]:
    """The card's files as a repo of the Hub has them, from where it loads; none if it is not (or no longer) ours.

    `license` is the repo's, for a card that names none.
    """
    saved = SavedFacts.read(folder)
    if not saved.are_ours(folder, CARD_FILE):
        return {}
    card = dataclasses.replace(_card(folder, saved, repo_id.rpartition("/")[2]), place=repo_id)
    card.license = card.license or license
    own = {file: caption for file, caption in captions_of(card).items() if saved.are_ours(folder, file)}
    card.plots = _shown(own | dict(card.plots), folder, {})
    content = card.content()
    saved.written[CARD_FILE] = [sha256_of(content)]
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
