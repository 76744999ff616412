"""The teachers' effect on every training row, computed once, and the file that it is read from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging

from hf_ext._files import is_regular, read_json, replaced_file, write_atomically
from hf_ext.functional import FrontDoorSum
from hf_ext.trainers.causald.bank import Bank
from hf_ext.trainers.causald.candidates import CandidateRows, read_rows
from hf_ext.trainers.causald.teachers import Teacher

logger = logging.get_logger(__name__)
_EFFECTS, _MANIFEST, _DTYPE = "effects.npy", "effects.json", np.float32
#: rows of a teacher's forward pass, histories that are added up at once, items whose direct logits are made at once
_ROWS, _HISTORIES, _ITEMS = 512, 8, 8192
#: what differs, in words, by part of a key
_WORDS = {
    "data": "other training rows",
    "candidates": "other candidates",
    "teachers": "other teachers",
    "weights": "other teacher weights",
    "bank": "another bank",
    "average": "another average",
    "kind": "another kind",
    "dtype": "another dtype",
}


class Adjustment(NamedTuple):
    """How the teachers are averaged.

    Args:
        teachers: T of them.
        weights: T numbers >= 0, which add up to 1.
        bank: None for the plain ensemble.
        average, kind: of `FrontDoorSum`.
    """

    teachers: Sequence[Teacher]
    weights: Sequence[float]
    bank: Bank | None
    average: Literal["probability", "logit"]
    kind: Literal["softmax", "bce"]


# ------------------------------------------------------------------------------------------------ the file
def key_of(
    rows: CandidateRows, data: str, teachers: Sequence[dict[str, str]], adjustment: Adjustment
) -> dict[str, Any]:
    """What the effect depends on, part by part.

    Args:
        rows: that it is of.
        data: their `fingerprint`.
        teachers: the `identity_of` each.
        adjustment: of the teachers.
    """
    bank = adjustment.bank
    return {
        "data": data,
        "candidates": {"number": rows.num_candidates, "seed": rows.seed},
        "teachers": list(teachers),
        "weights": [float(weight) for weight in adjustment.weights],
        "bank": bank and hashlib.sha256(bank.input_ids.tobytes() + bank.prior.tobytes()).hexdigest(),
        "average": adjustment.average,
        "kind": adjustment.kind,
        "dtype": np.dtype(_DTYPE).name,
    }


def is_complete(folder: Path, key: dict[str, Any], shape: tuple[int, int]) -> bool:
    """Whether the effect of this key lies in a folder, from end to end.

    Raises:
        ValueError: another key's does; it names what differs.
    """
    if not is_regular(folder / _MANIFEST):
        return False
    found = read_json(folder / _MANIFEST, "causald_cache_dir")
    if different := [words for part, words in _WORDS.items() if found.get(part) != key[part]]:
        raise ValueError(
            f"causald_cache_dir: found effects of {' and '.join(different)} in {str(folder)!r}, allowed are those of "
            "this run: name another folder, or delete that one"
        )
    try:
        return open_effects(folder).shape == shape
    except (OSError, ValueError):  # gone, or cut off
        return False


def open_effects(folder: str | os.PathLike[str]) -> NDArray[np.float32]:
    """The effects in a folder, `[N, C]`, memory mapped and read only.

    Raises:
        OSError, ValueError: none, or a file that is no such array.
    """
    found = np.lib.format.open_memmap(Path(folder) / _EFFECTS, mode="r")  # which reads no objects
    if found.dtype != _DTYPE or found.ndim != 2:
        raise ValueError(f"causald_cache_dir: found {found.dtype} of shape {found.shape}, allowed is float32 [N, C]")
    return np.asarray(found)  # whose rows are read faster than those of a numpy.memmap


def write_effects(
    folder: Path, key: dict[str, Any], rows: CandidateRows, adjustment: Adjustment, **options: Any
) -> None:
    """Compute and keep them: the array under another name until it is whole, what says so after that.

    Args:
        folder: made if it is not there.
        key: of `key_of`.
        rows, adjustment, options: of `compute_effects`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replaced_file(folder / _EFFECTS) as new:
        shape = (len(rows), rows.num_candidates)
        effects = np.lib.format.open_memmap(new, mode="w+", dtype=_DTYPE, shape=shape)
        compute_effects(effects, rows, adjustment, **options)
        effects.flush()
    write_atomically(folder / _MANIFEST, json.dumps(key, indent=1))


# ------------------------------------------------------------------------------------------------ the numbers
def compute_effects(
    effects: NDArray[np.float32],
    rows: CandidateRows,
    adjustment: Adjustment,
    *,
    device: torch.device,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> None:
    """Fill `effects`, `[N, C]`, teacher by teacher.

    One teacher is on the device at a time, and no other array of that size is made: what it says is averaged into
    what the teachers before it have left. That is the average of all at once, since the effect of some teachers,
    taken for the scores of one, with the sum of their weights, adds up to the same.

    Raises:
        ValueError: a teacher whose scores are NaN, or infinite so that there is no average.
    """
    before = 0.0
    for teacher, weight in zip(adjustment.teachers, adjustment.weights, strict=True):
        if not weight:
            continue
        with teacher.on(device) as model, torch.no_grad():
            scores_of = _scores_of(model, adjustment.bank if teacher.has_direct_path else None, rows.num_items, device)
            for first in range(0, len(rows), _ROWS):
                place = slice(first, min(first + _ROWS, len(rows)))
                batch = collate(read_rows(rows, range(place.start, place.stop)))
                inputs = {name: batch[name].to(device) for name in _INPUTS if name in batch}
                total = FrontDoorSum(adjustment.kind, adjustment.average)
                try:
                    if before:
                        total.add(torch.from_numpy(effects[place]).to(device), before)
                    for scores, shares in scores_of(inputs):
                        total.add(scores, weight * shares)
                    effects[place] = total.effect().float().cpu().numpy()
                except ValueError as error:
                    raise ValueError(
                        f"teachers: found {teacher.words} without an effect on rows {place.start} to "
                        f"{place.stop - 1} of train_dataset ({error}), allowed are teachers with finite scores"
                    ) from error
        before += weight


_INPUTS = ("input_ids", "attention_mask", "candidate_ids")
#: parts of a row's scores, `[J, B, C]`, and the shares that they count for, `[J, 1]`
_Scored = Iterator[tuple[Tensor, Tensor]]


def _scores_of(
    model: Any, bank: Bank | None, num_items: int, device: torch.device
) -> Callable[[dict[str, Tensor]], _Scored]:
    """What gives a teacher's scores of a batch, over the bank if there is one, a part of it at a time."""
    if bank is None:
        one = torch.ones(1, 1, device=device)
        return lambda inputs: iter([(model(**inputs).logits[None], one)])
    direct = _direct_logits(model, torch.from_numpy(bank.input_ids).to(device), num_items)
    parts = [
        (table.to(device), share.to(device)[:, None])
        for table, share in zip(direct.split(_HISTORIES), torch.from_numpy(bank.prior).split(_HISTORIES), strict=True)
    ]

    def over_the_bank(inputs: dict[str, Tensor]) -> _Scored:
        outputs = model(**inputs)
        by_mediator = outputs.logits.float() - outputs.direct_logits.float()
        for table, share in parts:
            yield by_mediator + table[:, inputs["candidate_ids"]], share

    return over_the_bank


def _direct_logits(model: Any, histories: Tensor, num_items: int) -> Tensor:
    """Of every history and item, `[K, num_items + 1]`: they do not depend on the row, and are made once."""
    items = torch.arange(1, num_items + 1, device=histories.device)
    made = [model.direct_logits(histories, part).float() for part in items.split(_ITEMS)]
    return torch.cat([made[0].new_zeros(len(histories), 1), *made], dim=1)
