"""Paired comparison of two systems over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["shown", "not shown", "reversed"]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, with its two-sided confidence interval (NaN where one pair is all there is).

    Args:
        mean: of `method - baseline` over seeds, in the metric's unit, positive where the method is better.
        low, high: ends of the interval.
        pairs: number of seeds.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> Verdict:
        """`shown` if the whole interval favours the method, `reversed` if it favours the baseline."""
        if self.low > 0:
            return "shown"
        return "reversed" if self.high < 0 else "not shown"


def paired_difference(
    method: Sequence[float], baseline: Sequence[float], *, greater_is_better: bool = True, confidence: float = 0.95
) -> Difference:
    """Student's t interval of the mean difference of pairs (same seed: same data split, same base model).

    Raises:
        ValueError: unequal or zero numbers of values.
    """
    if len(method) != len(baseline) or not len(method):
        raise ValueError(f"method: found {len(method)} values and {len(baseline)} of baseline, allowed are pairs")
    differences = np.asarray(method, dtype=float) - np.asarray(baseline, dtype=float)
    if not greater_is_better:
        differences = -differences
    pairs, mean = len(differences), float(differences.mean())
    if pairs == 1:
        return Difference(mean, math.nan, math.nan, pairs)
    half = float(stats.t.ppf((1 + confidence) / 2, pairs - 1) * differences.std(ddof=1) / math.sqrt(pairs))
    return Difference(mean, mean - half, mean + half, pairs)
