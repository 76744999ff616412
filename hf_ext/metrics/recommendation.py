"""How well next items are ranked, for whom, and which ones: from ranks to the numbers of a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hf_ext.functional import group_heterogeneity, ranking_metrics, user_groups
from hf_ext.metrics.rankings import Integers, RankedTargets, TargetRows, ranks_of_logits

if TYPE_CHECKING:
    from transformers import EvalPrediction

Values = NDArray[np.float64]

#: the folder to give to `evaluate.load`
RANKING_METRIC = str(Path(__file__).parent / "ranking")


class RankingMetrics:
    """`compute_metrics` of a Trainer whose `preprocess_logits_for_metrics` is `ranks_of_logits`.

    A user with several targets counts once, with their mean, in all but `auc`:

    - `ndcg@k`, `hr@k`, `mrr`: ties count against the target; the last is without a cut
    - `auc`, `gauc`: the share of the other candidates that stand below the target, ties as a half; the mean over rows,
      and over users. Targets without another candidate are left out
    - `coverage@k`: the share of the items that anybody has among the first k
    - `popularity@k`: how popular those are, as the mean share of the items with fewer training events (ties: half)
    - `head_`, `tail_`, `gap_`, `std_` before `ndcg@k` and `auc` (that of users): the mean over head users, over tail
      users, head minus tail (positive where the head is served better), and the standard deviation of the two means.
      The last two are NaN where nobody is in one of the groups

    Args:
        dataset: whose rows are evaluated, in their order.
        k: the cut; at most that of `ranks_of_logits`.
        head_fraction: the share of users that are head users at most, see `user_groups`; by default the dataset's own
            groups.

    Raises:
        ValueError: on calling, ranks of another dataset, fewer items a row than k, or NaN among a row's logits.
    """

    def __init__(self, dataset: TargetRows, *, k: int = 10, head_fraction: float | None = None) -> None:
        self.k, self._users, self._targets = k, dataset.users, dataset.targets
        self._groups = dataset.groups
        if head_fraction is not None:
            activity = torch.as_tensor(dataset.split.activity)
            self._groups = user_groups(activity, head_fraction=head_fraction).numpy()[dataset.users]
        self._popularity = _percentiles(dataset.split.item_counts[1:])

    def __call__(self, prediction: "EvalPrediction") -> dict[str, float]:
        labels = np.asarray(prediction.label_ids)
        if not np.array_equal(labels, self._targets):
            raise ValueError(
                f"labels: found {labels.shape[0]} that are not the {len(self._targets)} targets of the dataset that "
                "the metrics were made for, allowed are these, in order"
            )
        return self.of(RankedTargets(*map(np.asarray, prediction.predictions)))

    def of(self, ranked: RankedTargets) -> dict[str, float]:
        """The metrics of the dataset's rows, ranked outside of a Trainer."""
        if len(ranked.ranks) != len(self._users):
            raise ValueError(f"ranked: found {len(ranked.ranks)} rows, allowed are {len(self._users)}")
        num_items = len(self._popularity)
        if ranked.top.shape[1] < min(self.k, num_items):
            raise ValueError(f"k: found {self.k}, allowed are integers <= {ranked.top.shape[1]}, the items kept a row")
        top = ranked.top[:, : self.k]
        listed = np.unique(top[top > 0])
        popularity = np.append(np.nan, self._popularity)[top]
        shares = np.nansum(popularity, axis=1) / (top > 0).sum(axis=1)
        return {
            **_report(ranked, self._users, self._groups, self.k),
            f"coverage@{self.k}": len(listed) / num_items,
            f"popularity@{self.k}": _mean(_user_means(shares, self._users)),
        }


def ranking_report(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    users: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    k: int = 10,
) -> dict[str, float]:
    """`RankingMetrics` of plain arrays, without what takes training data: coverage and popularity.

    Args:
        scores: `[N, C]`, -inf for what is no candidate; the target always is one.
        targets: int `[N]`, places among the candidates.
        users: `[N]`, numbers or names; by default every row is a user of its own.
        groups: int `[N]`, 1 for rows of head users and 0 for the others; by default nothing is said of groups.
        k: the cut.

    Raises:
        ValueError: NaN among the scores, targets that are no places, a user in two groups, or shapes that do not fit.
    """
    # float32 at least, float64 as it is
    scores = np.asarray(scores)
    rows = torch.from_numpy(scores.astype(np.promote_types(scores.dtype, np.float32)))
    places = torch.as_tensor(np.asarray(targets))
    if rows.ndim != 2 or places.shape != rows.shape[:1] or not ((places >= 0) & (places < rows.shape[1])).all():
        raise ValueError(f"targets: found {places.tolist()}, allowed are places in [0, {rows.shape[-1]}), one a row")
    ranked = ranks_of_logits(rows, places + 1, k)
    named = np.arange(len(rows)) if users is None else np.asarray(users)
    grouped = None if groups is None else np.asarray(groups)
    for name, values in (("users", named), ("groups", grouped)):
        if values is not None and values.shape != rows.shape[:1]:
            raise ValueError(f"{name}: found shape {values.shape}, allowed is [{len(rows)}]")
    return _report(RankedTargets(*(values.numpy() for values in ranked)), named, grouped, k)


def _report(ranked: RankedTargets, users: Integers, groups: Integers | None, k: int) -> dict[str, float]:
    broken = np.isnan(ranked.ranks)
    if broken.any():
        raise ValueError(f"scores: found NaN in {broken.sum()} of {len(broken)} rows, allowed are numbers")
    count = torch.as_tensor(ranked.num_candidates)
    by_rank, by_mean = (
        ranking_metrics(torch.as_tensor(ranks).double(), count, k=k) for ranks in (ranked.ranks, ranked.mean_ranks)
    )
    of_rows = {name: by_rank[name].numpy() for name in ("ndcg", "hr", "mrr")} | {"auc": by_mean["auc"].numpy()}
    of_users = {name: _user_means(values, users) for name, values in of_rows.items()}
    means = {name: _mean(values) for name, values in of_users.items()}
    report = {f"ndcg@{k}": means["ndcg"], f"hr@{k}": means["hr"], "mrr": means["mrr"]}
    report |= {"auc": _mean(of_rows["auc"]), "gauc": means["auc"]}
    if groups is not None:
        own = _user_groups_of_rows(users, groups)
        for name, values in ((f"ndcg@{k}", of_users["ndcg"]), ("auc", of_users["auc"])):
            found = group_heterogeneity(torch.as_tensor(values), torch.as_tensor(own))
            tail, head = found["mean"].tolist()
            gap, std = float(found["gap"]), float(found["std"])
            report |= {f"head_{name}": head, f"tail_{name}": tail, f"gap_{name}": gap, f"std_{name}": std}
    return report


def _mean(values: Values) -> float:
    """Of those that are not NaN; NaN if there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _user_means(values: Values, users: NDArray[Any]) -> Values:
    """The mean of every user's rows that are not NaN, users sorted; NaN where there are none."""
    _, places = np.unique(users, return_inverse=True)
    present = ~np.isnan(values)
    counts = np.bincount(places, weights=present)
    sums = np.bincount(places, weights=np.where(present, values, 0.0))
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _user_groups_of_rows(users: NDArray[Any], groups: Integers) -> Integers:
    """The group of every user, users sorted."""
    _, first, places = np.unique(users, return_index=True, return_inverse=True)
    own = groups[first]
    if not np.array_equal(own[places], groups):
        raise ValueError("groups: found a user in two groups, allowed is one for all rows of a user")
    return own


def _percentiles(counts: Integers) -> Values:
    """Of every item the share of all with fewer events, those with as many as a half."""
    ordered = np.sort(counts)
    below, not_above = (np.searchsorted(ordered, counts, side=side) for side in ("left", "right"))
    shares: Values = (below + not_above) / (2 * len(counts))
    return shares
