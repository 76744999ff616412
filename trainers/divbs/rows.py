"""Rows of a batch: which there are, and some of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_ext.functional.losses import IGNORED_LABEL

_Tensors = Callable[[str, Tensor], Tensor]
_Lists = Callable[[list[Any]], list[Any]]


def batch_size(batch: Mapping[str, Any]) -> int:
    """Number of rows of a batch: the first dimension of its labels, or else of its first tensor.

    Raises:
        ValueError: nothing has rows, or the rows are not samples (packed sequences).
    """
    if packed := [name for name in batch if name.startswith(("cu_seq", "seq_idx"))]:
        raise ValueError(
            f"{packed[0]}: found packed sequences in a batch, allowed are batches with one sample per row"
        )
    for value in (batch.get("labels"), *batch.values()):
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
    raise ValueError(f"batch: found no tensor with rows among {sorted(batch)}, allowed are batches of samples")


def take_rows(batch: Mapping[str, Any], rows: Tensor, size: int) -> dict[str, Any]:
    """Some rows of every tensor and list of a batch of `size` rows, in nested mappings too; scalars as they are.

    Raises:
        ValueError: a tensor or list with another first dimension.
    """

    def of_tensor(_: str, value: Tensor) -> Tensor:
        return value.index_select(0, rows.to(value.device))

    return map_rows(batch, size, of_tensor, lambda values: [values[row] for row in rows.tolist()])


def without_padding(batch: dict[str, Any], *, multiple: int = 8) -> dict[str, Any]:
    """The batch without the last token columns, where they are padding in every row: what `attention_mask` leaves out.

    A number of columns that is a multiple of `multiple` stays. A batch is returned as it is if something other than
    padding might be lost: tensors `[B, T, ...]` that are no token ids, or labels there.
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return batch
    used = int((mask.ne(0).any(dim=0) * torch.arange(1, mask.shape[1] + 1, device=mask.device)).max())
    length = max(used + -used % multiple, multiple)
    tokens = {n: v for n, v in batch.items() if isinstance(v, Tensor) and v.shape[:2] == mask.shape}
    if length >= mask.shape[1] or any(value.ndim > 2 or value.is_floating_point() for value in tokens.values()):
        return batch
    labels = [tokens[name] for name in ("labels", "shift_labels") if name in tokens]
    if any(bool(value[:, length:].ne(IGNORED_LABEL).any()) for value in labels):
        return batch
    return {**batch, **{name: value[:, :length] for name, value in tokens.items()}}


def map_rows(batch: Mapping[str, Any], size: int, of_tensor: _Tensors, of_list: _Lists) -> dict[str, Any]:
    """What these make of every tensor (with its name) and list of a batch of `size` rows, in the batch's order.

    Raises:
        ValueError: a tensor or list with another first dimension.
    """
    taken: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Mapping):
            taken[name] = map_rows(value, size, of_tensor, of_list)
        elif (isinstance(value, Tensor) and value.ndim) or isinstance(value, list | tuple):
            if len(value) != size:
                shape = tuple(value.shape) if isinstance(value, Tensor) else f"({len(value)},)"
                raise ValueError(
                    f"{name}: found shape {shape} in a batch of {size} samples, allowed is a row for each"
                )
            taken[name] = of_tensor(name, value) if isinstance(value, Tensor) else of_list(list(value))
        else:
            taken[name] = value
    return taken
