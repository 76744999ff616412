"""What TARF's studies tell of a run: the gap to the retrained model, what was left out, what it cost."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_ext.metrics import gap
from hf_ext.studies.study import Outcome
from hf_ext.trainers import TARFTrainer

Scores = Mapping[str, Mapping[str, float]]  # UA, RA, TA, MIA and the like, on `validation` and on `test` rows


class Cost:
    """Rows that a model is trained on from now on; of a pass without gradients a row counts a third."""

    def __init__(self, model: nn.Module) -> None:
        self.rows = 0.0
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        rows = next(len(value) for value in kwargs.values() if isinstance(value, Tensor))
        self.rows += rows * (1 if torch.is_grad_enabled() else 1 / 3)

    def stop(self) -> None:
        self._hook.remove()


def outcome(scores: Scores, retrained: Scores, *, cost: float, left_out: Mapping[str, float | None]) -> Outcome:
    """Of one run.

    Args:
        scores, retrained: of its model and the retrained one.
        cost: rows trained on, in those of retraining.
        left_out: see `left_out_rows`.
    """
    gaps = {name: gap(metrics, retrained[name]) for name, metrics in scores.items()}
    details = {name: scores["test"].get(name) for name in ("UA", "UA_forget", "UA_hidden", "RA", "TA", "MIA")}
    details |= {f"{name}, retrained": retrained["test"][name] for name in ("UA", "RA", "TA", "MIA")}
    return Outcome(gaps["validation"], gaps["test"], {**details, **left_out, "cost": 100 * cost})


def left_out_rows(trainer: TARFTrainer, hidden: NDArray[np.bool_]) -> dict[str, float | None]:
    """Percent of the hidden rows, and of the rows to be kept, that were left out of the remaining data."""
    retained = trainer.identification.retained
    if retained is None:
        return {"hidden rows left out": None, "other rows left out": None}
    left_out = (retained == 0).cpu().numpy()
    return {
        "hidden rows left out": 100 * float(left_out[hidden].mean()),
        "other rows left out": 100 * float(left_out[~hidden].mean()),
    }
