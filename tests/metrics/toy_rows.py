"""A dataset of targets as small as can be, and scorers of it."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NUM_ITEMS = 9


@dataclass(frozen=True)
class ToySplit:
    """Events sorted by user."""

    offsets: np.ndarray
    item_rows: np.ndarray
    train_ends: np.ndarray

    @property
    def interactions(self) -> "ToySplit":
        return self

    @property
    def activity(self) -> np.ndarray:
        return self.train_ends

    @property
    def training(self) -> list[list[int]]:
        return [
            self.item_rows[start : start + end].tolist()
            for start, end in zip(self.offsets, self.train_ends, strict=False)
        ]

    @property
    def item_counts(self) -> np.ndarray:
        return np.bincount(np.concatenate(self.training), minlength=NUM_ITEMS + 1)


class ToyRows:
    """After the training events a user's every other event is a target."""

    def __init__(self, histories: list[list[int]], train_ends: list[int]) -> None:
        offsets = np.cumsum([0, *map(len, histories)])
        self.split = ToySplit(offsets, np.concatenate(histories), np.array(train_ends))
        self.places = [
            (user, place)
            for user, (events, end) in enumerate(zip(histories, train_ends, strict=True))
            for place in range(end, len(events))
        ]
        self.histories = histories
        self.users = np.array([user for user, _ in self.places])
        self.targets = np.array([histories[user][place] for user, place in self.places])
        self.groups = (self.users < 2).astype(np.int64)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        user, place = self.places[index]
        earlier = self.histories[user][:place]
        return {
            "input_ids": torch.tensor(([0, 0, 0, *earlier])[-3:]),
            "labels": torch.tensor(self.histories[user][place]),
            "exclude_ids": torch.tensor(earlier),
            "user": user,
        }


def collate(rows: list[Any]) -> dict[str, Tensor]:
    stacked = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels")}
    excluded = [row["exclude_ids"] for row in rows]
    return stacked | {"exclude_ids": nn.utils.rnn.pad_sequence(excluded, batch_first=True)}


def toy_rows() -> ToyRows:
    """Five users; the third takes an item again, the last has taken nearly all."""
    histories = [[1, 2, 3, 4, 5], [2, 1, 3, 6], [3, 2, 3], [1, 2, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    return ToyRows(histories, [3, 2, 2, 3, 8])


class ToyModel(nn.Module):
    """Scores by the last item, not those of all rows at once."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(NUM_ITEMS + 1, NUM_ITEMS)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(0))
        self.dropout = nn.Dropout(0.5)
        self.rows: list[int] = []

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        self.rows.append(len(input_ids))
        return SimpleNamespace(logits=self.dropout(self.table(input_ids[:, -1])))
