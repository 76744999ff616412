"""What CausalD's study measures of a system: ranks of what was taken, and how near a shop's true effect it is."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from hf_ext.data.interactions import NextItems
from hf_ext.metrics.rankings import RankedTargets, expected_ndcg
from hf_ext.metrics.recommendation import RankingMetrics
from hf_ext.studies.causald.data import World
from hf_ext.studies.study import Outcome

CUT = 10
GAUC, HEAD, TAIL, GAP, SIZE = (
    "AUC per user",
    "NDCG@10, head",
    "NDCG@10, tail",
    "gap (head minus tail)",
    "size of the gap",
)
COVERAGE, EFFECT_NDCG, EFFECT_KL = "coverage", "NDCG@10 under intervention", "KL from the true effect"


class Ranker(Protocol):
    """A system, ready to be measured."""

    def ranks(self, rows: NextItems) -> RankedTargets:
        """Of the targets of rows for evaluation."""

    def scores(self, histories: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Logits of all items after histories `[B, L]`, `[B, num_items]`; None where there are none."""


def measure(system: Ranker, world: World) -> Outcome:
    """NDCG@10 of the items of validation and test, and details of the test."""
    validation, test = (
        RankingMetrics(rows, k=CUT).of(system.ranks(rows)) for rows in map(world.rows, ("validation", "test"))
    )
    gap = test["gap_ndcg@10"]
    details = {
        HEAD: test["head_ndcg@10"],
        TAIL: test["tail_ndcg@10"],
        GAP: gap,
        SIZE: abs(gap),
        GAUC: test["gauc"],
        COVERAGE: test["coverage@10"],
        **against_the_truth(system, world),
    }
    return Outcome(validation["ndcg@10"], test["ndcg@10"], details)


def against_the_truth(system: Ranker, world: World) -> dict[str, float | None]:
    """How well items are ranked that are drawn from a shop's P(Y | do(x)), expected exactly, and the KL from it.

    The histories x are those of all users before their test items.
    """
    histories = world.histories()
    scores = system.scores(histories) if world.shop is not None else None
    if world.shop is None or scores is None:
        return {EFFECT_NDCG: None, EFFECT_KL: None}
    effect = world.shop.true_effect(histories)
    divergence = (effect * (np.log(effect) - log_softmax(scores, axis=1))).sum(axis=1).mean()
    return {EFFECT_NDCG: expected_ndcg(scores, effect, k=CUT), EFFECT_KL: float(divergence)}
