"""What counts as positive and what as negative in an epoch, and the loss of scores on it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hf_ext.functional import rank_select_loss
from hf_ext.functional.gpl import Reduction
from hf_ext.functional.losses import IGNORED_LABEL


@dataclass(frozen=True, eq=False)
class Targets:
    """Of all nodes of a graph.

    Args:
        labels: 1 known positives, 0 unlabelled, -100 others, int64 `[N]`.
        selected: unlabelled nodes that count as positive, bool `[N]`.
        reduction: of `rank_select_loss`.
    """

    labels: Tensor
    selected: Tensor
    reduction: Reduction

    @cached_property
    def positive(self) -> Tensor:
        """Bool `[N]`."""
        return (self.labels == 1) | self.selected

    @cached_property
    def negative(self) -> Tensor:
        """Bool `[N]`."""
        return (self.labels == 0) & ~self.selected

    @cached_property
    def counts(self) -> Tensor:
        """Positives and negatives, int64 `[2]`."""
        return torch.stack([self.positive.sum(), self.negative.sum()])

    def pseudo_labels(self) -> Tensor:
        """1 what counts as positive, 0 as negative, -1 others, int64 `[N]`."""
        return torch.where(self.positive, 1, torch.where(self.negative, 0, -1))

    def losses(self, scores: Tensor, nodes: Tensor | None = None, counted: Tensor | None = None) -> dict[str, Tensor]:
        """Terms and total of `rank_select_loss`: the share that some nodes have in those of all.

        Args:
            scores: of these nodes, `[n]`.
            nodes: int64 `[n]`; all by default.
            counted: which of them are meant, bool `[n]`; all by default.
        """
        labels, selected = self.labels, self.selected
        if nodes is not None:
            labels, selected = labels[nodes], selected[nodes]
        if counted is not None:
            labels, selected = labels.where(counted, IGNORED_LABEL), selected & counted
        return rank_select_loss(
            scores, labels == 1, selected, labels == 0, reduction=self.reduction, counts=self.counts
        )
