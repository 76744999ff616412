"""What a classifier from positive and unlabelled rows is worth: with the truth, and where only positives are known."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from hf_ext._arguments import Bounds, Count, ShareOrZero, check_value
from hf_ext.functional import rank_and_select

if TYPE_CHECKING:
    from transformers import EvalPrediction

Values = NDArray[np.float64]
Integers = NDArray[np.int64]
_BetweenZeroAndOne = Annotated[float, Bounds(above=0, below=1)]

#: the folder to give to `evaluate.load`
PU_METRIC = str(Path(__file__).parent / "pu")

#: what a row is in an evaluation: unlabelled and in truth positive, negative or unknown; a positive that was known and
#: held out of training; not evaluated, such as the positives of training
POSITIVE, NEGATIVE, UNKNOWN, HELD_OUT, IGNORED = 1, 0, -1, 2, -100

_BINS = 15  # of the calibration error
_DELTA, _GAMMA = 0.1, 0.01  # those of `hf_ext.functional.estimate_class_prior`, which a test compares
_LARGEST = 2**24  # counts of a bootstrap that are held at once


class PUMetrics:
    """`compute_metrics` of a Trainer whose model was trained on positive (P) and unlabelled (U) rows.

    Where the truth of some of U is known, over these rows:

    - `f1`: positive is what has `logits + offset >= 0`
    - `f1_at_prior`: positive is the share `prior` of all of U with the highest logits, if a prior is given
    - `auc`, `average_precision`: of the ranking, whatever the cut
    - `calibration_error`: expected, of `sigmoid(logits + offset)`, over 15 bins of equal numbers of rows
    - `prior_error`: how far `prior` is from the truth, if one is given

    Where known positives were held out, which needs no negatives:

    - `held_out_auc`: of these against all of U; a perfect ranking has about 1 minus half the prior
    - `held_out_recall`: the share of these with `logits + offset >= 0`
    - `lee_liu`: held_out_recall^2 / share of U that is called positive (Lee and Liu, 2003), an estimate of precision
      times recall over the prior: what calls everything positive has 1. It is 0 where nothing of U is called so

    What is undefined, as an AUC of one class, is NaN.

    Args:
        prior: share of positives in U, as estimated.
        offset: added to the logits, see `hf_ext.functional.prior_offset`.
        true_prior: of U; by default the share of positives among the rows of U whose truth is known.

    Raises:
        ValueError: a prior outside of [0, 1] or an offset that is no number; on calling, logits that are NaN or not
            `[N]`, or roles that are none.
    """

    def __init__(self, prior: float | None = None, offset: float = 0.0, true_prior: float | None = None) -> None:
        for name, share in (("prior", prior), ("true_prior", true_prior)):
            check_value(name, share, ShareOrZero | None)
        check_value("offset", offset, float)
        self.prior, self.offset, self.true_prior = prior, offset, true_prior

    def __call__(self, prediction: "EvalPrediction") -> dict[str, float]:
        logits = prediction.predictions
        return self.of(logits[0] if isinstance(logits, tuple | list) else logits, prediction.label_ids)

    def of(self, logits: ArrayLike, roles: ArrayLike) -> dict[str, float]:
        """The metrics of logits `[N]` and roles int `[N]`, outside of a Trainer.

        Roles are 1 and 0, positive and negative in truth, -1, unknown (these three are U), 2, a positive that was
        held out, and -100, not evaluated.
        """
        scores, codes = _checked(logits, roles)
        unlabelled, known = np.isin(codes, (POSITIVE, NEGATIVE, UNKNOWN)), np.isin(codes, (POSITIVE, NEGATIVE))
        called = scores + self.offset >= 0
        found: dict[str, float] = {}
        if known.any():
            found |= self._with_truth(scores, codes == POSITIVE, unlabelled, known)
        if (codes == HELD_OUT).any():
            held_out = codes == HELD_OUT
            recall, share = float(called[held_out].mean()), _mean(called[unlabelled])
            compared = held_out | unlabelled
            found |= {
                "held_out_auc": _auc(held_out[compared], scores[compared]),
                "held_out_recall": recall,
                "lee_liu": recall**2 / share if share else 0.0,
            }
        return found

    def _with_truth(
        self, scores: Values, positive: NDArray[np.bool_], unlabelled: NDArray[np.bool_], known: NDArray[np.bool_]
    ) -> dict[str, float]:
        truth, shown = positive[known], scores[known]
        probabilities = expit(shown + self.offset)
        found = {
            "f1": float(f1_score(truth, shown + self.offset >= 0, zero_division=0.0)),
            "auc": _auc(truth, shown),
            "average_precision": float(average_precision_score(truth, shown)) if truth.any() else math.nan,
            "calibration_error": _calibration_error(probabilities, truth),
        }
        if self.prior is not None:
            chosen = _best(scores, unlabelled, self.prior)[known]
            true_prior = float(truth.mean()) if self.true_prior is None else self.true_prior
            found |= {
                "f1_at_prior": float(f1_score(truth, chosen, zero_division=0.0)),
                "prior_error": abs(self.prior - true_prior),
            }
        return found


def reliability_curve(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> dict[str, list[float]]:
    """What is predicted beside what is true, in bins of equal numbers of rows; equal probabilities share a bin.

    Args:
        probabilities: `[N]`, in [0, 1].
        labels: `[N]`, 1 or True for positive, 0 for negative.
        bins: how many; those without rows are left out.

    Returns:
        Lists of a number per bin, from the lowest: `predicted`, the mean probability, `observed`, the share of
        positives, and `rows`, how many there are.

    Raises:
        ValueError: no rows, other shapes, probabilities or labels, or fewer than one bin.
    """
    check_value("bins", bins, Count)
    values, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or truth.shape != values.shape or not len(values):
        raise ValueError(
            f"probabilities: found shape {values.shape} and labels of shape {truth.shape}, allowed are [N] with N > 0"
        )
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"probabilities: found {values.min()} to {values.max()}, allowed are numbers in [0, 1]")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"labels: found {np.unique(truth)[:10].tolist()}, allowed are 0 and 1")
    places = np.searchsorted(np.sort(values), values) * bins // len(values)
    rows = np.bincount(places, minlength=bins)
    present = rows > 0
    means = (np.bincount(places, weights=of, minlength=bins)[present] / rows[present] for of in (values, truth))
    predicted, observed = (mean.tolist() for mean in means)
    return {"predicted": predicted, "observed": observed, "rows": rows[present].tolist()}


def prior_interval(
    scores: ArrayLike,
    positive_mask: ArrayLike,
    unlabeled_mask: ArrayLike | None = None,
    *,
    method: Literal["bbe", "en"] = "bbe",
    labeled_mask: ArrayLike | None = None,
    level: float = 0.95,
    replicates: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """How far `hf_ext.functional.estimate_class_prior` would differ on other rows: an interval by the bootstrap.

    Positives and unlabelled rows are drawn anew, with replacement, as many as there are. The interval is of the
    estimate's chance alone: what the scores cannot tell apart makes the estimate too high, and positives that are not
    like the hidden ones make it wrong, on all draws alike.

    Args:
        scores: `[N]`, of a classifier; for "en" probabilities of being labelled.
        positive_mask: bool `[N]`, known positives that the classifier was not trained on.
        unlabeled_mask: bool `[N]`, by default all others.
        method, labeled_mask: as there.
        level: share of the draws whose estimates are within.
        replicates: number of draws.
        seed: of the draws.

    Returns:
        The lower and the upper end, in [0, 1].

    Raises:
        ValueError: no positives or no unlabelled rows, NaN among their scores, or an option that is none.
    """
    check_value("method", method, Literal["bbe", "en"])
    check_value("level", level, _BetweenZeroAndOne)
    check_value("replicates", replicates, Count)
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive_mask, dtype=bool)
    unlabelled = ~positive if unlabeled_mask is None else np.asarray(unlabeled_mask, dtype=bool)
    labelled = positive if labeled_mask is None else np.asarray(labeled_mask, dtype=bool)
    shapes = {mask.shape for mask in (positive, unlabelled, labelled)}
    if values.ndim != 1 or shapes != {values.shape}:
        found = ", ".join(map(str, sorted(shapes)))
        raise ValueError(f"scores: found shape {values.shape} with masks of {found}, allowed is [N] for all")
    known, others = np.sort(values[positive])[::-1], values[unlabelled]
    for name, part in (("positive_mask", known), ("unlabeled_mask", others)):
        if not len(part) or np.isnan(part).any():
            found = "NaN among the scores" if len(part) else "no rows"
            raise ValueError(f"{name}: found {found}, allowed are one or more rows with numbers")
    draws = _draws(known, others, replicates, np.random.default_rng(seed))
    if method == "bbe":
        priors = np.concatenate([_best_bins(known, *counts) for counts in draws])
    else:
        sizes = int(labelled.sum()), int((labelled | positive).sum())
        priors = np.concatenate([_elkan_noto(known, *counts, *sizes) for counts in draws])
    low, high = np.quantile(priors, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _draws(
    known: Values, others: Values, replicates: int, generator: np.random.Generator
) -> Iterator[tuple[Integers, Integers]]:
    """How often each positive is drawn `[R, P]`, and how many unlabelled rows between them `[R, P + 1]`, in parts.

    All that an estimate takes of the unlabelled rows is how many have at least each positive's score: the numbers in
    between are one draw of a multinomial, however many rows there are.
    """
    at_least = len(others) - np.searchsorted(np.sort(others), known)  # as the positives, from the highest
    between = np.diff(at_least, prepend=0, append=len(others))
    rows = max(1, _LARGEST // (len(known) + 1))
    for first in range(0, replicates, rows):
        size = min(rows, replicates - first)
        uniform = np.full(len(known), 1 / len(known))
        yield (
            generator.multinomial(len(known), uniform, size=size),
            generator.multinomial(len(others), between / len(others), size=size),
        )


def _best_bins(known: Values, drawn: Integers, between: Integers) -> Values:
    """`estimate_class_prior(method="bbe")` of every draw.

    Between two positives the share of positives is the same and that of unlabelled rows lowest at the upper one, so
    the best bin ends at a positive. Of equal ones it is the last: the others count as many unlabelled rows.
    """
    positives = drawn.cumsum(1) / drawn.sum(1, keepdims=True)
    unlabelled = between[:, :-1].cumsum(1) / between.sum(1, keepdims=True)
    sizes = drawn.sum(1, keepdims=True), between.sum(1, keepdims=True)
    slack = (1 + _GAMMA) * sum(np.sqrt(math.log(4 / _DELTA) / (2 * size)) for size in sizes)
    with np.errstate(divide="ignore"):
        bounds = np.where(positives > 0, (unlabelled + slack) / positives, np.inf)
    best = bounds.argmin(1)[:, None]
    ratio: Values = np.take_along_axis(unlabelled, best, 1) / np.take_along_axis(positives, best, 1)
    return np.clip(ratio[:, 0], 0.0, 1.0)


def _elkan_noto(known: Values, drawn: Integers, between: Integers, labelled: int, all_known: int) -> Values:
    """`estimate_class_prior(method="en")` of every draw, with the numbers of rows in L, and in L or P."""
    means = drawn @ known / len(known)
    with np.errstate(divide="ignore"):
        priors: Values = (labelled / means - all_known) / between.sum(1)
    return np.clip(priors, 0.0, 1.0)


def _checked(logits: ArrayLike, roles: ArrayLike) -> tuple[Values, Integers]:
    scores, codes = np.asarray(logits, dtype=np.float64), np.asarray(roles)
    if scores.ndim != 1 or codes.shape != scores.shape:
        raise ValueError(f"logits: found shape {scores.shape} with roles of {codes.shape}, allowed are [N] and [N]")
    allowed = (POSITIVE, NEGATIVE, UNKNOWN, HELD_OUT, IGNORED)
    if not np.isin(codes, allowed).all():
        others = np.setdiff1d(codes, allowed)[:10].tolist()
        raise ValueError(f"roles: found {others}, allowed are {', '.join(map(str, allowed))}")
    broken = np.isnan(scores) & (codes != IGNORED)
    if broken.any():
        raise ValueError(f"logits: found NaN in {broken.sum()} of {len(scores)} rows, allowed are numbers")
    return scores, codes


def _best(scores: Values, unlabelled: NDArray[np.bool_], prior: float) -> NDArray[np.bool_]:
    """The share `prior` of the unlabelled rows with the highest scores, as training selects them."""
    chosen: NDArray[np.bool_] = rank_and_select(
        torch.from_numpy(scores), torch.from_numpy(unlabelled), prior=prior
    ).numpy()
    return chosen


def _auc(truth: NDArray[np.bool_], scores: Values) -> float:
    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else math.nan


def _calibration_error(probabilities: Values, truth: NDArray[np.bool_]) -> float:
    curve = {name: np.array(values) for name, values in reliability_curve(probabilities, truth, _BINS).items()}
    return float((curve["rows"] * abs(curve["predicted"] - curve["observed"])).sum() / curve["rows"].sum())


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else 0.0
