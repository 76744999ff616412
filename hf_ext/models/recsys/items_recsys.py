"""What the rows of a recommender are: raw ids and titles, which travel with the model in a file beside its weights."""

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

#: the file beside config.json
ITEMS_NAME = "items.json"

_LONGEST_ID, _LONGEST_TITLE = 512, 2048
#: no file of as many items as a model has is longer than so many bytes an item: JSON takes up to 6 for a character
_BYTES = 6 * (_LONGEST_ID + _LONGEST_TITLE) + 16
_INT64 = 2**63


class ItemTable:
    """Raw ids and titles of the items 1 to N.

    Args:
        ids: of every item in the order of rows, all integers or all text, none twice.
        titles: likewise, text; None for none, of an item or of all: the id as text stands for it.

    Raises:
        ValueError: others; it names the first.
    """

    def __init__(self, ids: Iterable[Any], titles: Iterable[Any] | None = None) -> None:
        self.ids: list[int | str] = [_plain_id(value) for value in ids]
        kinds = {type(value) for value in self.ids}
        if len(kinds) > 1:
            raise ValueError("ids: found integers and text, allowed is either")
        self._rows = {value: row for row, value in enumerate(self.ids, start=1)}
        if len(self._rows) < len(self.ids):
            twice = next(value for row, value in enumerate(self.ids, start=1) if self._rows[value] != row)
            raise ValueError(f"ids: found {twice!r} twice, allowed is every id once")
        self.titles: list[str] | None = None
        if titles is not None:
            given = list(titles)
            if len(given) != len(self.ids):
                raise ValueError(f"titles: found {len(given)} for {len(self.ids)} ids, allowed are as many, or None")
            self.titles = [_plain_title(title, own) for title, own in zip(given, self.ids, strict=True)]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items{'' if self.titles is None else ' with titles'})"

    def rows(self, raw_ids: Iterable[Any]) -> np.ndarray:
        """Rows of raw ids, int64.

        Raises:
            ValueError: ids that are not in the table; it names up to five.
        """
        plain = [value.item() if isinstance(value, np.generic) else value for value in raw_ids]
        found = [self._rows.get(value) if type(value) in (int, str) else None for value in plain]
        if unknown := [value for value, row in zip(plain, found, strict=True) if row is None]:
            named = ", ".join(repr(value) for value in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            like = f", such as {self.ids[0]!r}" if self.ids else ""
            raise ValueError(f"item ids: found {named}, allowed are those of the model's {len(self)} items{like}")
        return np.asarray(found, dtype=np.int64)

    def title(self, row: int) -> str:
        """Title of a row from 1 on; without titles its id as text."""
        return str(self.ids[row - 1]) if self.titles is None else self.titles[row - 1]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `items.json` into a folder, whole or not at all."""
        new = Path(folder, f".{secrets.token_hex(8)}.json")
        try:
            with open(new, "x", encoding="utf-8") as file:
                json.dump({"ids": self.ids, "titles": self.titles}, file)
            os.replace(new, Path(folder, ITEMS_NAME))
        finally:
            new.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], num_items: int) -> "ItemTable":
        """The table of a model with so many items.

        Raises:
            ValueError: a file that is no such table, or larger than one of so many items can be, which is not read.
        """
        most = _BYTES * (num_items + 1)
        with open(path, "rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"{path}: found more than {most} bytes, allowed are ids and titles of {num_items} items")
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: found broken JSON ({error}), allowed are ids and titles of items") from None
        if not isinstance(values, dict) or not isinstance(values.get("ids"), list):
            raise ValueError(f"{path}: found no list of ids, allowed are ids and titles of items")
        if not isinstance(values.get("titles"), list | None):
            raise ValueError(f"{path}: found {type(values['titles']).__name__} as titles, allowed is a list or none")
        try:
            return check_items(cls(values["ids"], values.get("titles")), num_items)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def check_items(items: Any, num_items: int) -> ItemTable:
    """A table of so many items, from anything that has `ids` and `titles`.

    Raises:
        ValueError: another number of items, or none of a table's.
    """
    ids: Sequence[Any] | None = getattr(items, "ids", None)
    if ids is None:
        raise ValueError(f"items: found {type(items).__name__}, allowed is what has ids and titles")
    table = items if isinstance(items, ItemTable) else ItemTable(ids, getattr(items, "titles", None))
    if len(table) != num_items:
        raise ValueError(
            f"ids: found {len(table)} of them for a model with num_items={num_items}, allowed are as many"
        )
    return table


def _plain_id(value: Any) -> int | str:
    """As JSON has it; numpy's are taken, too."""
    if isinstance(value, str) and len(value) <= _LONGEST_ID:
        return str(value)
    if not isinstance(value, bool) and isinstance(value, Integral) and -_INT64 <= int(value) < _INT64:
        return int(value)
    shown = f"text of {len(value)} characters" if isinstance(value, str) else repr(value)[:80]
    raise ValueError(f"ids: found {shown}, allowed are integers of 64 bits and text of up to {_LONGEST_ID} characters")


def _plain_title(value: Any, own_id: int | str) -> str:
    if value is None:
        return str(own_id)
    if isinstance(value, str) and len(value) <= _LONGEST_TITLE:
        return str(value)
    shown = f"text of {len(value)} characters" if isinstance(value, str) else repr(value)[:80]
    raise ValueError(f"titles: found {shown}, allowed is text of up to {_LONGEST_TITLE} characters")
