"""The catalogue: which raw id, and which title, every row of a model's item table stands for."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Id = int | str
SHOWN = 5  # of many wrong values in an error


@dataclass(frozen=True, eq=False)
class ItemTable:
    """Items by row. Row `r` is `ids[r - 1]`; row 0 is padding and no item.

    Args:
        ids: raw ids, as in the user's file, all different: all int or all str.
        titles: one for each id, or None.

    Raises:
        ValueError: no ids, equal ids, or another number of titles.
    """

    ids: list[Id]
    titles: list[str] | None = None

    def __post_init__(self) -> None:
        if not self.ids or len(set(self.ids)) < len(self.ids):
            raise ValueError(f"ids: found {len(self.ids)}, {len(set(self.ids))} of them different, allowed are >= 1")
        if self.titles is not None and len(self.titles) != len(self.ids):
            raise ValueError(f"titles: found {len(self.titles)}, allowed are {len(self.ids)}, one for each of ids")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _row_of(self) -> dict[Id, int]:
        return {raw: row for row, raw in enumerate(self.ids, start=1)}

    def rows(self, raw_ids: Iterable[Any]) -> NDArray[np.int64]:
        """The rows of raw ids, `[N]`.

        Raises:
            ValueError: ids that are not in the catalogue; it names them. `"12"` is not `12`, and True is not 1.
        """
        asked = [raw.item() if isinstance(raw, np.generic) else raw for raw in raw_ids]
        unknown = [raw for raw in asked if isinstance(raw, bool) or not isinstance(raw, Id) or raw not in self._row_of]
        if unknown:
            shown = ", ".join(map(repr, unknown[:SHOWN])) + (", ..." if len(unknown) > SHOWN else "")
            raise ValueError(f"item ids: found {shown}, allowed are the {len(self)} of the catalogue ({self._span()})")
        return np.fromiter((self._row_of[raw] for raw in asked), dtype=np.int64, count=len(asked))

    def title(self, row: int) -> str:
        """The title of a row, or its raw id as text where there are no titles.

        Raises:
            ValueError: no row of an item.
        """
        if not 1 <= row <= len(self):
            raise ValueError(f"row: found {row}, allowed are 1 to {len(self)}")
        return str(self.ids[row - 1]) if self.titles is None else self.titles[row - 1]

    def _span(self) -> str:
        return f"{type(self.ids[0]).__name__}, from {self.ids[0]!r} to {self.ids[-1]!r}"
