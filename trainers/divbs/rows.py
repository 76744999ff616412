"""Rows of a batch: which there are, some of them, and rows that processes hand each other."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
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

    return _map_rows(batch, size, of_tensor, lambda values: [values[row] for row in rows.tolist()])


def exchange_rows(
    batch: Mapping[str, Any],
    rows: Tensor,
    size: int,
    accelerator: Accelerator,
    *,
    padding: Mapping[str, int],
    pad_first: bool = False,
) -> dict[str, Any]:
    """This process's share of some rows of all processes' batches, each of `size` rows.

    Row `r size + i` is row i of process r; the j-th of `rows` goes to process j modulo their number. Sequences are
    padded to the longest of all batches.

    Args:
        batch: this process's.
        rows: the same on all processes.
        size: see above.
        accelerator: of the Trainer.
        padding: value by name of the input, 0 where there is none.
        pad_first: pad on the left.

    Raises:
        ValueError: a tensor or list with another first dimension.
    """
    share = slice(accelerator.process_index, None, accelerator.num_processes)

    def of_tensor(name: str, value: Tensor) -> Tensor:
        if value.ndim > 1:
            value = accelerator.pad_across_processes(value, dim=1, pad_index=padding.get(name, 0), pad_first=pad_first)
        places = rows.to(value.device)
        others = (places // size != accelerator.process_index).view(-1, *[1] * (value.ndim - 1))
        own = value.index_select(0, places % size).masked_fill(others, 0)
        # exactly one process has a row that is not zero, so the sum is an exchange of the chosen rows alone
        summed: Any = accelerator.reduce(own.to(torch.uint8) if own.dtype == torch.bool else own, reduction="sum")
        return summed[share].to(value.dtype)

    def of_list(values: list[Any]) -> list[Any]:
        gathered = gather_object(values)
        return [gathered[row] for row in rows[share].tolist()]

    return _map_rows(batch, size, of_tensor, of_list)


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


def _map_rows(batch: Mapping[str, Any], size: int, of_tensor: _Tensors, of_list: _Lists) -> dict[str, Any]:
    taken: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Mapping):
            taken[name] = _map_rows(value, size, of_tensor, of_list)
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
