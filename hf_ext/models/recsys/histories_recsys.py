"""Histories as the encoders take them: items first, padding after them, whatever the rows of a batch look like."""

import torch
from torch import Tensor


class Compacted:
    """Rows of a batch with their items moved to the front, in order, and the padding behind.

    So a causal encoder needs no mask, counts positions from a history's first item, and never sees padding before an
    item: how much of it there is, and where, changes nothing.

    Args:
        mask: `[B, L]` bool, where there is an item.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.lengths = mask.sum(dim=1)
        ahead = mask.cumsum(dim=1) - 1
        behind = self.lengths[:, None] + (~mask).cumsum(dim=1) - 1
        self._places = torch.where(mask, ahead, behind)

    def compact(self, values: Tensor) -> Tensor:
        """`[B, L]` in the order of the batch to `[B, L]` in that order."""
        return torch.zeros_like(values).scatter(1, self._places, values)

    def restore(self, states: Tensor) -> Tensor:
        """`[B, L, D]` in that order to `[B, L, D]` in the batch's, zeros where there is no item."""
        back = states.gather(1, self._places[..., None].expand(-1, -1, states.shape[-1]))
        return back * self.mask[..., None].to(back.dtype)

    @property
    def places(self) -> Tensor:
        """Where every row's newest item is in that order, `[B]`; 0 in a row without items."""
        return (self.lengths - 1).clamp(min=0)

    def newest(self, states: Tensor) -> Tensor:
        """The state of every row's newest item, `[B, D]`, of those of all, or of `[B, 1, D]`, those at `places`.

        Zeros for a row without items.
        """
        own = states if states.shape[1] == 1 else at_places(states, self.places)
        return own[:, 0] * (self.lengths > 0)[:, None].to(states.dtype)


def newest_of(mask: Tensor, number: int | None) -> Tensor:
    """Where the newest items of a history are, so many of them, or all for None; `[B, L]` bool like `mask`."""
    if number is None:
        return mask
    newer = mask.flip(1).cumsum(dim=1).flip(1)  # an item itself is counted
    return mask & (newer <= number)


def at_places(values: Tensor, places: Tensor) -> Tensor:
    """Of `[B, ..., L, D]` what is at one place of every row, `[B]`: `[B, ..., 1, D]`."""
    index = places.view(-1, *[1] * (values.ndim - 1))
    return values.gather(-2, index.expand(*values.shape[:-2], 1, values.shape[-1]))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `[B, L, D]` over the places of `mask` `[B, L]`, `[B, D]`; zeros where there are none."""
    weights = mask.to(values.dtype)
    return (values * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=1)


def running_mean(values: Tensor, mask: Tensor) -> Tensor:
    """At every place the mean of `[B, L, D]` over the places of `mask` up to it, `[B, L, D]`."""
    weights = mask.to(values.dtype)
    return (values * weights[..., None]).cumsum(dim=1) / weights.cumsum(dim=1).clamp(min=1)[..., None]
