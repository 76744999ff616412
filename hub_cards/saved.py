"""What a card was made from and which files are ours: `hf_ext_card.json`, from which the next card goes on."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_ext._files import is_regular, read_json, sha256_of, write_atomically
from hf_ext.hub_cards.card import CARD_FILE, MethodCard, Result, checked_facts

FACTS_FILE = "hf_ext_card.json"
CARD_FIELDS = {field.name for field in dataclasses.fields(MethodCard)}


@dataclass
class SavedFacts:
    """What `hf_ext_card.json` holds.

    Args:
        method: the card's.
        said: arguments of `MethodCard` that a caller gave. They win.
        run: those that the last run showed. They win over the folder's configuration, which is read anew each time.
        written: SHA-256 of what was written into the folder, by name, by which it is known what somebody has changed.
            Of a file that is being replaced there are two.
    """

    method: str | None = None
    said: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    written: dict[str, list[str]] = field(default_factory=dict)

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
        saved = cls(**{name: values[name] for name in ("method", "said", "run") if name in values})
        saved.said, saved.run = _parse_facts(saved.said), _parse_facts(saved.run)
        saved.written = {str(name): list(map(str, sums)) for name, sums in dict(values.get("written", {})).items()}
        if values.get("sha256"):  # of the card alone, as earlier versions left it
            saved.written.setdefault(CARD_FILE, [str(values["sha256"])])
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

    def are_ours(self, folder: Path, *names: str) -> bool:
        """Whether these files of the folder are as they were written with these facts; a link never is."""
        paths = {name: folder / name for name in names}
        return all(
            not path.is_symlink() and is_regular(path) and sha256_of(path) in self.written.get(name, ())
            for name, path in paths.items()
        )

    @contextmanager
    def recording(self, folder: Path, sums: Mapping[str, str]) -> Iterator[None]:
        """While files with these SHA-256 are written, the old ones and the new ones are known as ours.

        So whoever is interrupted in between leaves no file that is taken for somebody's.
        """
        both = {name: list(dict.fromkeys([*self.written.get(name, ()), new])) for name, new in sums.items()}
        self.written |= both
        self.write(folder)
        yield
        self.written |= {name: [new] for name, new in sums.items()}
        self.write(folder)


def is_ours(folder: str | os.PathLike[str]) -> bool:
    """Whether the card in a folder is one that `create_card` wrote."""
    return (Path(folder) / CARD_FILE).is_file() and (Path(folder) / FACTS_FILE).is_file()


def _parse_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: value for name, value in dict(values).items() if name in CARD_FIELDS}
    if "results" in facts:
        facts["results"] = [Result(**row) for row in facts["results"]]
    facts = checked_facts(facts)
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
