"""What the models' inputs may be, and what is said of others."""

from typing import Any

import torch
from torch import Tensor

_ALLOWED = "allowed are rows of the model's items, integers"


def check_rows(name: str, rows: Any, num_items: int, shapes: tuple[int, ...]) -> Tensor:
    """Rows of items as int64; 0 is padding.

    Values are looked at on the CPU alone, since elsewhere that would wait for the device: there a row out of range is
    an error of the embedding, or none.

    Raises:
        ValueError: no integers, another number of dimensions than `shapes`, or a row that the model does not have.
    """
    if not isinstance(rows, Tensor) or rows.dtype in (torch.bool,) or rows.is_floating_point() or rows.is_complex():
        found = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"{name}: found {found}, {_ALLOWED}")
    if rows.ndim not in shapes:
        sizes = " or ".join(str(number) for number in shapes)
        raise ValueError(f"{name}: found the shape {tuple(rows.shape)}, allowed are {sizes} dimensions")
    _check_range(name, rows, 0, num_items, f"the model's {num_items} items are 1 to {num_items}, 0 is padding")
    return rows.long()


def check_labels(labels: Any, *, targets: int, first: int, shapes: tuple[int, ...], floats: bool) -> Tensor:
    """Labels: what each row's target is, or floats for all candidates.

    Args:
        labels: int64 or floats.
        targets: number of things a label may be, from `first` on.
        first: 1 for rows of items, 0 for places of candidates.
        shapes: allowed numbers of dimensions of integers.
        floats: whether floats `[B, C]` are labels, too.

    Raises:
        ValueError: others.
    """
    if not isinstance(labels, Tensor) or labels.dtype == torch.bool or labels.is_complex():
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels: found {found}, allowed are integers")
    if labels.is_floating_point():
        if not floats or labels.ndim != 2:
            raise ValueError(
                f"labels: found {labels.dtype} of shape {tuple(labels.shape)}, allowed are integers, and with "
                "candidate_ids and loss='bce' floats [B, C]"
            )
        return labels
    if labels.ndim not in shapes:
        sizes = " or ".join(str(number) for number in shapes)
        raise ValueError(f"labels: found the shape {tuple(labels.shape)}, allowed are {sizes} dimensions")
    allowed = f"allowed are {first} to {targets + first - 1}, and -100 for none"
    _check_range("labels", labels.where(labels != -100, first), first, targets + first - 1, allowed)
    return labels.long()


def _check_range(name: str, values: Tensor, low: int, high: int, allowed: str) -> None:
    if torch.compiler.is_compiling() or values.device.type != "cpu" or not values.numel():
        return
    least, most = (int(value) for value in values.aminmax())
    if least < low or most > high:
        raise ValueError(f"{name}: found {least if least < low else most}, {allowed}")
