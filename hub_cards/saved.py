"""What a card was made from: `hf_ext_card.json` in the same folder, from which the next card goes on."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_ext._files import read_json, write_atomically
from hf_ext.hub_cards.card import CARD_FILE, MethodCard, Result
from hf_ext.hub_cards.folder import without_local_paths

FACTS_FILE = "hf_ext_card.json"
CARD_FIELDS = {field.name for field in dataclasses.fields(MethodCard)}
_MAPPINGS = ("base_options", "data", "environment", "facts", "hyper_parameters")


@dataclass
class SavedFacts:
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

    @classmethod
    def read(cls, folder: Path) -> "SavedFacts":
        """Those of a folder; empty ones if it has none.

        Raises:
            ValueError: a file that `create_card` did not write.
        """
        path = folder / FACTS_FILE
        if not path.is_file():
            return cls()
        try:
            return cls._parse(read_json(path, "folder"))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"folder: found a broken {str(path)!r} ({error}), allowed is what create_card wrote"
            ) from None

    @classmethod
    def _parse(cls, values: Mapping[str, Any]) -> "SavedFacts":
        saved = cls(**{name: values[name] for name in ("method", "said", "run", "sha256") if name in values})
        saved.said, saved.run = _parse_facts(saved.said), _parse_facts(saved.run)
        return saved

    def as_read_back(self) -> "SavedFacts":
        """These, as they will be read: a card made from them is the same the next time."""
        return self._parse(_plain(dataclasses.asdict(self)))

    def content(self) -> bytes:
        """As the file holds them."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=1).encode()

    def write(self, folder: Path) -> None:
        """Write the file in one step."""
        write_atomically(folder / FACTS_FILE, self.content())

    def are_of_the_card_in(self, folder: Path) -> bool:
        """Whether `README.md` is still the one that was written with these facts."""
        path = folder / CARD_FILE
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256


def save_facts(folder: str | os.PathLike[str], method: str, **facts: Any) -> None:
    """Save facts for the card of a folder that is not made yet; they take the place of those that were saved."""
    folder = Path(folder)
    earlier = SavedFacts.read(folder)
    SavedFacts(method, without_local_paths(facts, folder), sha256=earlier.sha256).write(folder)


def is_ours(folder: str | os.PathLike[str]) -> bool:
    """Whether the card in a folder is one that `create_card` wrote."""
    return (Path(folder) / CARD_FILE).is_file() and (Path(folder) / FACTS_FILE).is_file()


def _parse_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: value for name, value in dict(values).items() if name in CARD_FIELDS}
    for name in _MAPPINGS & facts.keys():
        facts[name] = dict(facts[name] or {})
    if "results" in facts:
        facts["results"] = [Result(**row) for row in facts["results"]]
    if "plots" in facts:
        facts["plots"] = [(str(file), str(caption)) for file, caption in facts["plots"]]
    if "loss_terms" in facts:
        facts["loss_terms"] = [str(name) for name in facts["loss_terms"]]
    if "log_history" in facts:
        facts["log_history"] = [{name: _number(dict(row)[name]) for name in row} for row in facts["log_history"]]
    if "data" in facts:
        facts["data"] = {name: dict(split) for name, split in facts["data"].items()}
    return facts


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


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
