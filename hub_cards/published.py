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
    def license(self) -> str | None:
        """Of a card that is nothing but a licence, as the Hub makes it with a repo."""
        if self.text is None or self.is_ours:
            return None
        header = _header(self.text)
        named: Any = header.get("license")
        return named if header.keys() == {"license"} and isinstance(named, str) and not _body(self.text) else None

    def stays(self, folder: Path) -> bool:
        """Whether this one is somebody's and the folder's is nobody's; says so."""
        nobodys = not self.text or not self.text.strip() or self.is_ours or self.license is not None
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
    local = [name for name in _listed(header.get("base_model")) if not is_hub_id(str(name), folder)]
    public = {key: _public(value, local) for key, value in header.items()}
    if public == header:
        return content
    kept = {key: value for key, value in public.items() if value not in (None, []) or header[key] == value}
    return f"---\n{yaml_dump(kept) if kept else ''}---\n{_HEADER.sub('', card, count=1)}".encode()


def _public(value: Any, local: list[Any]) -> Any:
    """A value of a header without these names, without paths, and without tags that end in either."""

    def is_private(item: Any) -> bool:
        ends = item.split(":") if isinstance(item, str) else [item]
        return item in local or ends[-1] in local or any(isinstance(end, str) and _is_absolute(end) for end in ends)

    if isinstance(value, list):
        return [item for item in value if not is_private(item)]
    return None if is_private(value) else value


def _is_absolute(name: str) -> bool:
    return is_place(name) and not re.search(r"\s", name) and len(name) > 1


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


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
