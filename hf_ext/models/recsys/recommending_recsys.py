"""Recommendations: the best items for histories, by chunks of the catalogue, and what they are called."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .checks_recsys import check_rows
from .items_recsys import ItemTable
from .portable import as_number
from .tables_recsys import spans

#: floats that scoring a chunk of the catalogue may hold at once
BUDGET = 2**25
#: histories that are scored at once
_HISTORIES = 1024


@dataclass(frozen=True)
class Recommendations:
    """The best items of B histories, best first.

    Args:
        rows: int64 `[B, k]`; 0 where fewer than k items were left.
        scores: `[B, k]`, the model's logits; -inf there.
        ids: for each history the raw ids of these items, without the places where none was left; None where the model
            has no items.
        titles: likewise their titles, of an item without one its id as text.
    """

    rows: Tensor
    scores: Tensor
    ids: list[list[int | str]] | None = None
    titles: list[list[str]] | None = None


class RecommendingMixin:
    """`recommend` of a model that scores spans of rows, and knows its items by name."""

    config: Any
    device: Any
    items: ItemTable | None

    @torch.no_grad()
    def top_items(
        self,
        input_ids: Tensor,
        k: int = 10,
        attention_mask: Tensor | None = None,
        exclude_ids: Tensor | None = None,
        exclude_history: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The best k items of the catalogue, without a tensor of all scores, and without dropout.

        Args:
            input_ids: rows `[B, L]`, newest last; of more than `max_length` the model sees the newest.
            k: how many.
            attention_mask: `[B, L]`; by default where there is a row other than 0.
            exclude_ids: rows `[B, E]` that are not to be recommended, 0 for none.
            exclude_history: whether those of `input_ids` are not, all of them.

        Returns:
            Scores and rows, `[B, k]`, best first; -inf and 0 where fewer than k items are left.

        Raises:
            ValueError: rows that the model does not have, or a k below 1.
        """
        model: Any = self
        number = self.config.num_items
        k = as_number(k, "k", at_least=1, integer=True)
        input_ids = check_rows("input_ids", input_ids, number, (2,))
        unwanted = [input_ids] if exclude_history else []
        if exclude_ids is not None:
            unwanted.append(check_rows("exclude_ids", exclude_ids, number, (2,)))
        excluded_rows = torch.cat(unwanted, dim=1) if unwanted else None
        with evaluating(model):
            history = model.encode(input_ids, attention_mask)
            best: tuple[Tensor, Tensor] | None = None
            for span in spans(number, model.chunk_size(len(input_ids))):
                scores = model.score_span(history, span)
                if excluded_rows is not None:
                    scores = scores.masked_fill(excluded(excluded_rows, span), -math.inf)
                best = _best_of(best, scores, span.start, k)
        assert best is not None  # there is one item at least
        scores, rows = best
        rows = rows.masked_fill(scores == -math.inf, 0)
        lacking = (0, k - scores.shape[1])
        return nn.functional.pad(scores, lacking, value=-math.inf), nn.functional.pad(rows, lacking)

    def recommend(self, history: Any, k: int = 10, exclude_history: bool = True) -> Recommendations:
        """What to recommend to somebody, new users included: a history is all that is needed.

        Args:
            history: raw ids, oldest first, of one user, or a list of these of several; or rows, an int64 tensor
                `[B, L]` or `[L]`, 0 for padding on the left. Of more than `max_length` the model sees the newest.
            k: how many items; fewer are given where fewer are left.
            exclude_history: whether items of the history are left out, however old.

        Returns:
            Recommendations, also of one user with a first dimension of 1.

        Raises:
            ValueError: an id or row that the model does not know, a history without items (there is nothing to go by),
                raw ids for a model without items, or a k below 1.
        """
        rows = self._rows_of(history)
        if (empty := (rows != 0).sum(dim=1) == 0).any():
            place = int(empty.nonzero()[0])
            raise ValueError(f"history: found none at place {place}, allowed are histories of at least one item")
        found = [
            self.top_items(part.to(self.device), k, exclude_history=exclude_history) for part in rows.split(_HISTORIES)
        ]
        scores, best = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        table = self.items
        if table is None:
            return Recommendations(best, scores)
        named = [[row for row in line if row] for line in best.tolist()]
        ids = [[table.ids[row - 1] for row in line] for line in named]
        return Recommendations(best, scores, ids, [[table.title(row) for row in line] for line in named])

    def _rows_of(self, history: Any) -> Tensor:
        """Rows `[B, L]`, padded on the left."""
        if isinstance(history, Tensor):
            history = history[None] if history.ndim == 1 else history
            return check_rows("history", history, self.config.num_items, (2,))
        if self.items is None:
            raise ValueError(
                "history: found raw ids for a model without items, allowed are tensors of rows (or set_items first)"
            )
        histories = _lists(history)
        lines = [self.items.rows(line) for line in histories]
        rows = torch.zeros(len(lines), max((len(line) for line in lines), default=0), dtype=torch.int64)
        for row, line in zip(rows, lines, strict=True):
            if len(line):
                row[-len(line) :] = torch.from_numpy(line)
        return rows


def _lists(history: Any) -> list[list[Any]]:
    """One history or several, as several."""
    if isinstance(history, (str, bytes)) or not hasattr(history, "__iter__"):
        raise ValueError(f"history: found {history!r}, allowed is a list of item ids, or a list of such lists")
    values = list(history)
    nested = [not isinstance(value, (str, bytes)) and hasattr(value, "__iter__") for value in values]
    if 0 < sum(nested) < len(nested):
        raise ValueError("history: found ids and lists of ids side by side, allowed are either")
    return [list(value) for value in values] if values and nested[0] else [values]


def excluded(rows: Tensor, span: slice) -> Tensor:
    """Which of a span of rows are among `[B, E]`, bool `[B, span]`."""
    size = span.stop - span.start
    places = rows - span.start
    places = places.where((places >= 0) & (places < size), size)  # one more place, which is then cut off
    found = torch.zeros(len(rows), size + 1, dtype=torch.bool, device=rows.device)
    return found.scatter(1, places, True)[:, :-1]


def _best_of(best: tuple[Tensor, Tensor] | None, scores: Tensor, first: int, k: int) -> tuple[Tensor, Tensor]:
    """The best k of those before and those of a span that begins at row `first`."""
    values, places = scores.topk(min(k, scores.shape[1]), dim=1)
    rows = places + first
    if best is None:
        return values, rows
    values, rows = torch.cat([best[0], values], dim=1), torch.cat([best[1], rows], dim=1)
    values, places = values.topk(min(k, values.shape[1]), dim=1)
    return values, rows.gather(1, places)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While this lasts the model is in evaluation mode; then every module is again in that which it was in."""
    training: Sequence[nn.Module] = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
