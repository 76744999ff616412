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

    def newest(self, states: Tensor) -> Tensor:
        """The state of every row's newest item, `[B, D]`; zeros for a row without items."""
        places = (self.lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[-1])
        return states.gather(1, places)[:, 0] * (self.lengths > 0)[:, None].to(states.dtype)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `[B, L, D]` over the places of `mask` `[B, L]`, `[B, D]`; zeros where there are none."""
    weights = mask.to(values.dtype)
    return (values * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=1)


def running_mean(values: Tensor, mask: Tensor) -> Tensor:
    """At every place the mean of `[B, L, D]` over the places of `mask` up to it, `[B, L, D]`."""
    weights = mask.to(values.dtype)
    return (values * weights[..., None]).cumsum(dim=1) / weights.cumsum(dim=1).clamp(min=1)[..., None]
