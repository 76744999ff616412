"""Which rows are trained on, and which are evaluated on."""

from typing import Annotated, Any

import numpy as np
from datasets import Dataset, DatasetDict

from hf_ext._arguments import Bounds, check_value
from hf_ext.data.loading import EVALUATED


def splits_of(rows: DatasetDict, data: Any, seed: int) -> tuple[DatasetDict, str]:
    """The splits `train` and, unless nothing is evaluated, `eval`; and what is to be said of them.

    Raises:
        ValueError: a split that the data do not have, or no rows to evaluate on.
    """
    wanted = None if data.eval_split in (None, "none") else str(data.eval_split)
    if wanted == "auto":
        wanted = next((name for name in EVALUATED if name in rows and name != data.train_split), "auto")
    for name in (data.train_split, wanted):
        if name not in rows and name not in (None, "auto"):
            raise ValueError(f"split: found {name!r}, allowed are {sorted(rows)} of {data.dataset!r}")
    train = rows[data.train_split]
    if wanted is None:
        return DatasetDict(train=train), "Nothing was evaluated (eval_split none)."
    if wanted in rows:
        return DatasetDict(train=train, eval=rows[wanted]), ""
    kept = _kept(train, data, seed)
    others = np.setdiff1d(np.arange(len(train)), kept)
    remark = (
        f"Evaluated on {len(kept)} of the {len(train)} rows of split {data.train_split!r}, a share of "
        f"{data.eval_share:g} of every class, which were drawn by seed {seed} and not trained on."
    )
    return DatasetDict(train=train.select(others), eval=train.select(kept)), remark


def _kept(rows: Dataset, data: Any, seed: int) -> np.ndarray:
    """Rows to evaluate on: of every class a share, but never all."""
    check_value("eval_share", data.eval_share, Annotated[float, Bounds(above=0, below=1)])
    column = data.label_column if data.label_column in rows.column_names else "label"
    labels = [str(label) for label in rows[column][:]] if column in rows.column_names else [""] * len(rows)
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    drawn = [rng.permutation(own)[: min(round(data.eval_share * len(own)), len(own) - 1)] for own in members.values()]
    kept = np.sort(np.concatenate(drawn)) if drawn else np.empty(0)
    if not len(kept):
        raise ValueError(
            f"eval_share: found {data.eval_share}, which is no row of {len(rows)} in {len(members)} classes, allowed "
            "are a larger share, more rows, or eval_split none"
        )
    return kept.astype(np.int64)
