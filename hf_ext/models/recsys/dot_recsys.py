"""Scores that are products of a history's mediator and the candidates' embeddings."""

from torch import Tensor, nn

from .tables_recsys import Rows


def dot_scores(mediator: Tensor, candidates: Tensor) -> Tensor:
    """`[B, C]`, products of `[B, D]` with `[B, C, D]`, or with `[C, D]` for all."""
    if candidates.ndim == 2:
        return mediator @ candidates.T
    return (candidates @ mediator[..., None])[..., 0]


class DotScorer(nn.Module):
    """`dot_scores` as a module, in the place of those that have parameters.

    `makes_logits` says to methods that look for a last linear layer that this is one, whose weights are the items'.
    """

    makes_logits = True

    def forward(self, mediator: Tensor, candidates: Tensor, rows: Rows) -> Tensor:
        """`[B, C]`; the candidates' rows are not needed."""
        return dot_scores(mediator, candidates)
