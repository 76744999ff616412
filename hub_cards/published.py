"""`README.md` on its way to the Hub: which one a push replaces, and paths that its header would tell everyone."""

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, yaml_dump

from hf_ext._files import sha256_of
from hf_ext.hub_cards.card import CARD_FILE
from hf_ext.hub_cards.create import is_handwritten
from hf_ext.hub_cards.folder import is_hub_id
from hf_ext.hub_cards.forms import facts_of_form
from hf_ext.hub_cards.saved import FACTS_FILE
from hf_ext.hub_cards.text import is_place

_HEADER = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---(?:\r?\n|$)", re.DOTALL)


@dataclass(frozen=True)
class RemoteCard:
    """The `README.md` of a branch.

    Args:
        repo: "owner/name".
        text: None if it has none.
        is_ours: whether it is as an earlier push left it.
    """

    repo: str
    text: str | None = None
    is_ours: bool = False

    @classmethod
    def of(cls, api: HfApi, repo: str, revision: str | None) -> "RemoteCard":
        """Ask the Hub."""
        there = set(api.list_repo_files(repo, revision=revision))
        if CARD_FILE not in there:
            return cls(repo)

        def content(name: str) -> bytes:  # without the cache, whose errors are others
            url = hf_hub_url(repo, name, revision=revision, endpoint=api.endpoint)
            response = get_session().get(url, headers=build_hf_headers(token=api.token))
            hf_raise_for_status(response)
            return bytes(response.content)

        card = content(CARD_FILE)
        written = _written(content(FACTS_FILE)) if FACTS_FILE in there else ()
        return cls(repo, card.decode(errors="replace"), sha256_of(card) in written)

    @property
    def is_bare(self) -> bool:
        """Whether it says nothing but a licence, as the Hub makes it with a repo."""
        text = self.text or ""
        return not _body(text) and _header(text).keys() == {"license"}

    @property
    def license(self) -> str | None:
        """That of a card which is replaced, so that it stays where the new one names none."""
        named = _header(self.text or "").get("license") if self.is_ours or self.is_bare else None
        return named if isinstance(named, str) else None

    def stays(self, folder: Path) -> bool:
        """Whether this one is somebody's and the folder's is nobody's; says so."""
        nobodys = not self.text or not self.text.strip() or self.is_ours or self.is_bare
        if nobodys or is_handwritten(folder):
            return False
        if facts_of_form(str(self.text), _header(str(self.text)).get("base_model")) == {}:
            return False
        if (folder / CARD_FILE).read_text(encoding="utf-8", errors="replace") == self.text:
            return False
        warnings.warn(
            f"README.md of {self.repo!r} was written or changed by somebody: it is kept, and the card of "
            f"{str(folder)!r} is not sent. To replace it, delete it on the Hub, or write the folder's yourself",
            stacklevel=3,
        )
        return True


def without_local_base(folder: Path) -> bytes:
    """A folder's `README.md`, whose header names no path of this machine as base model; else as it is."""
    content = (folder / CARD_FILE).read_bytes()
    card = content.decode(errors="replace")
    header = _header(card)

    def is_public(key: str, name: Any) -> bool:
        """Whether others can make something of a value; those of all other keys are its writer's business."""
        if key == "base_model":
            return is_hub_id(str(name), folder)
        if key == "tags" and str(name).startswith("base_model:"):  # such as base_model:adapter:NAME
            return is_hub_id(str(name).split(":", 2)[-1], folder)
        return key != "datasets" or not is_place(str(name))

    public = {}
    for key, value in header.items():
        names = value if isinstance(value, list) else [value]
        if kept := [name for name in names if name is None or is_public(key, name)]:
            public[key] = kept if isinstance(value, list) else kept[0]
        elif not names:
            public[key] = value
    if public == header:
        return content
    text = _HEADER.sub("", card, count=1)
    bases = header.get("base_model")
    for name in bases if isinstance(bases, list) else [bases]:
        if isinstance(name, str) and name in text and not is_public("base_model", name):
            warnings.warn(f"README.md names {name!r} in its text, which is published as you wrote it", stacklevel=3)
    return (f"---\n{yaml_dump(public)}---\n" if public else "").encode() + text.encode()


def _header(card: str) -> dict[str, Any]:
    """The metadata of a card; empty if there are none that can be read."""
    match = _HEADER.match(card)
    try:
        values = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _body(card: str) -> str:
    match = _HEADER.match(card)
    return card[match.end() :].strip() if match else card.strip()


def _written(facts: bytes) -> list[str]:
    """Sums of the card that facts on the Hub, of whatever version, call written."""
    try:
        values = json.loads(facts)
        written = values.get("written", {}).get(CARD_FILE) or [values.get("sha256")]
        return [str(value) for value in written]
    except (AttributeError, RecursionError, TypeError, ValueError):
        return []
