"""The rows that models of the next item learn from and are evaluated on, as windows of one array of events."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_ext._arguments import Bounds, Count, ShareOrZero, check_value
from hf_ext.data.interactions.negatives import Negatives, NegativeSampler
from hf_ext.data.interactions.splits import SplitInteractions
from hf_ext.data.interactions.table import Integers
from hf_ext.data.interactions.windows import every_window, one_window_each

Part = Literal["train", "validation", "test"]
Targets = Literal["last", "every"]
_Seed = Annotated[int, Bounds(at_least=0)]
_IGNORED = -100


class NextItems(Dataset[dict[str, Tensor]]):
    """Histories and the items that came next, one row a target.

    Every row has `input_ids`, int64 `[L]`, item rows, left-padded with 0, the newest last, and `attention_mask`, int64
    `[L]`. `L` is `max_length`; older events are left out. What else it has:

    | part | targets | options | columns |
    |---|---|---|---|
    | train | "last" | | `labels`, the target's item row |
    | train | "last" | `num_negatives` | `candidate_ids` `[C]`, the target first; `labels` 0; `candidate_log_q` `[C]` |
    | train | "last" | `in_batch` | `labels`, and scalars `candidate_ids`, `candidate_log_q`: see `NextItemsCollator` |
    | train | "every" | | `labels` `[L]`, the next item at every place, -100 where there is none |
    | others | "last" | | `labels`; `exclude_ids` `[E]`, all earlier items of the user; `user` |

    Training rows have a target of the training part after at least one event; a user with one such event has none.
    Rows for evaluation have all earlier events as history, of whichever part (also those for validation in the test);
    targets that nothing precedes are left out. Nothing that a training row holds depends on events of other parts.

    `candidate_log_q`, float32, is what to subtract from the candidates' logits for the draw (`NegativeSampler.log_q`).

    With "every", windows of a user overlap by half, and a target counts in one of them: it sees at least
    `max_length / 2` events, or all there are before it.

    Negatives are drawn from the catalogue without the target, by a hash of (seed, epoch, row, place): the same for any
    number of processes and workers and on resuming. They may be items that the user takes later: to filter these would
    tell the model the future. The epoch is what `set_epoch` was told last, 0 before; see `SetEpoch`.

    Args:
        split: of which a part is served.
        part: "train", "validation" or "test".
        max_length: `L`.
        targets: "last", every target in a row of its own, or "every", many in a row, for causal models.
        num_negatives: negatives a training row, `C - 1`; None for none.
        negatives: "uniform" over the catalogue, or by "popularity", the number of training events.
        fixed_negatives: whether every epoch has the negatives of epoch 0.
        avoid_history: whether items of the user's training events are drawn again, where possible.
        in_batch: whether the batch's targets are each other's negatives.
        seed: of the negatives.
        head_fraction: the share of users that are head users at most, in `groups`.

    Attributes:
        users: of each row, int64 `[N]`.
        targets: item row of each row's (last) target, int64 `[N]`.
        groups: 1 for rows of head users, by training activity, else 0; int64 `[N]`.

    Raises:
        ValueError: values out of bounds, options that do not go together, a part without rows, or negatives of a
            catalogue of one item.
    """

    def __init__(
        self,
        split: SplitInteractions,
        part: Part = "train",
        *,
        max_length: int = 50,
        targets: Targets = "last",
        num_negatives: int | None = None,
        negatives: Negatives = "uniform",
        fixed_negatives: bool = False,
        avoid_history: bool = False,
        in_batch: bool = False,
        seed: int = 0,
        head_fraction: float = 0.2,
    ) -> None:
        self._check(dict(locals()))
        self.split, self.part, self.max_length = split, part, max_length
        self.fixed_negatives, self.in_batch, self.seed = fixed_negatives, in_batch, seed
        starts, ends = split.bounds(part)
        if targets == "every":
            self._windows = every_window(split.interactions.offsets[:-1], ends, max_length)
        else:
            self._windows = one_window_each(split.interactions.offsets[:-1], starts, ends)
        if not len(self._windows.ends):
            raise ValueError(
                f"part: found {part!r} without a row, allowed is one with targets that another event of the user "
                f"precedes ({split.method})"
            )
        self._every = targets == "every"
        self.users: Integers = self._windows.users
        self.targets: Integers = split.interactions.item_rows[self._windows.ends]
        self.groups: Integers = split.groups(head_fraction)[self.users]
        self._options = (part, max_length, targets, num_negatives, negatives, fixed_negatives, avoid_history, in_batch)
        self._sampler: NegativeSampler | None = None
        if num_negatives is not None:
            self._sampler = NegativeSampler(split, num_negatives, negatives, avoid_history=avoid_history, seed=seed)
        self._in_batch_log_q = np.log(np.maximum(split.item_counts, 1) / max(split.item_counts.sum(), 1))
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that stay alive see it change

    def _check(self, options: dict[str, Any]) -> None:
        kinds = {"part": Part, "max_length": Count, "targets": Targets, "num_negatives": Count | None}
        kinds |= {"negatives": Negatives, "fixed_negatives": bool, "avoid_history": bool, "in_batch": bool}
        for name, kind in (kinds | {"seed": _Seed, "head_fraction": ShareOrZero}).items():
            check_value(name, options[name], kind)
        for name, found in (
            ("targets", options["targets"] == "every"),
            ("num_negatives", options["num_negatives"] is not None),
            ("in_batch", options["in_batch"]),
        ):
            if not found:
                continue
            if options["part"] != "train":
                raise ValueError(
                    f"{name}: found {options[name]!r} with part={options['part']!r}, allowed is part='train' "
                    "(others rank the target among all items)"
                )
            if name != "targets" and options["targets"] == "every":
                raise ValueError(f"{name}: found {options[name]!r} with targets='every', allowed is targets='last'")
        if options["in_batch"] and options["num_negatives"] is not None:
            raise ValueError(f"num_negatives: found {options['num_negatives']} with in_batch, allowed is None")

    @property
    def epoch(self) -> int:
        """What negatives are drawn by."""
        return 0 if self.fixed_negatives else int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Let negatives be those of an epoch from now on, in worker processes as well."""
        self._epoch.fill_(epoch)

    @property
    def digest(self) -> str:
        """SHA-256 of all that rows depend on but the epoch."""
        return hashlib.sha256(f"{self.split.digest} {self._options} {self.seed}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """The rows of a batch, which a DataLoader asks for at once.

        Raises:
            IndexError: an index out of range.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.size and (rows.min() < -len(self) or rows.max() >= len(self)):
            raise IndexError(f"index: found {rows.min()} to {rows.max()}, allowed are {-len(self)} to {len(self) - 1}")
        columns = self._columns(rows % len(self))
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _columns(self, rows: Integers) -> dict[str, Sequence[Tensor]]:
        places, known = self._windows.places(rows, self.max_length)
        events = self.split.interactions.item_rows
        columns: dict[str, Any] = {
            "input_ids": np.where(known, events[places], 0),
            "attention_mask": known.astype(np.int64),
            "labels": self.targets[rows],
        }
        if self._every:
            counted = known & (np.arange(self.max_length) >= self.max_length - self._windows.counted[rows][:, None])
            columns["labels"] = np.where(counted, events[places + 1], _IGNORED)
        elif self._sampler is not None:
            targets = self.targets[rows]
            drawn = self._sampler.draw(rows, self.users[rows], targets, self.epoch)
            candidates = np.concatenate([targets[:, None], drawn], axis=1)
            columns |= {"candidate_ids": candidates, "labels": np.zeros(len(rows), dtype=np.int64)}
            columns["candidate_log_q"] = self._sampler.log_q(candidates)
        elif self.in_batch:
            log_q = self._in_batch_log_q[self.targets[rows]].astype(np.float32)
            columns |= {"candidate_ids": self.targets[rows], "candidate_log_q": log_q}
        elif self.part != "train":
            columns["user"] = self.users[rows]
        tensors: dict[str, Sequence[Tensor]] = {
            name: torch.from_numpy(values).unbind() for name, values in columns.items()
        }
        if self.part != "train":
            every, starts = torch.from_numpy(events), self._windows.starts[rows]
            pairs = zip(starts, self._windows.ends[rows], strict=True)
            tensors["exclude_ids"] = [every[start:end] for start, end in pairs]
        return tensors


class NextItemsCollator:
    """Makes batches of rows of `NextItems`, as stacked tensors.

    `exclude_ids`, which are of different lengths, are padded with 0 on the right. Candidates that are scalars, those
    of `in_batch`, become one list for the whole batch: `candidate_ids` `[B]` and `candidate_log_q` `[B]`, of the
    targets, with `labels` int64 `[B]` the place of each row's own: 0 to B - 1.
    """

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        names = [name for name in rows[0] if name != "exclude_ids"]
        batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in names}
        if "exclude_ids" in rows[0]:
            excluded = [torch.as_tensor(row["exclude_ids"]) for row in rows]
            batch["exclude_ids"] = torch.nn.utils.rnn.pad_sequence(excluded, batch_first=True)
        if "candidate_ids" in batch and batch["candidate_ids"].ndim == 1:
            batch["labels"] = torch.arange(len(rows))
        return batch
