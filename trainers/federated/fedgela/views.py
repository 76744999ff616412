"""Both views of an evaluation: metrics of the global logits, and of the same scaled by the client's class weights."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction

PERSONAL = "personal_"


def scaled(logits: Any, class_weights: Tensor) -> Any:
    """Personal logits `g phi`, of global ones `g`, `[..., C]`: a tensor, an array, or a list of these.

    A tuple of a model's outputs begins with the logits; the others stay as they are.

    Raises:
        ValueError: another number of classes.
    """
    if isinstance(logits, list):
        return [scaled(one, class_weights) for one in logits]
    if isinstance(logits, tuple):
        return (scaled(logits[0], class_weights), *logits[1:])
    shape = tuple(np.shape(logits))
    if shape[-1:] != tuple(class_weights.shape):
        raise ValueError(f"logits: found shape {list(shape)}, allowed are those of {len(class_weights)} classes")
    if isinstance(logits, Tensor):
        return logits * class_weights.to(logits.device, logits.dtype)
    return np.asarray(logits) * class_weights.cpu().numpy().astype(np.asarray(logits).dtype)


def with_personal(
    compute_metrics: Callable[[EvalPrediction], Mapping[str, Any]], class_weights: Tensor, prefix: str
) -> Callable[[EvalPrediction], dict[str, Any]]:
    """The same metrics of the same predictions, and those of the personal view, called `personal_<metric>`."""

    def both(prediction: EvalPrediction) -> dict[str, Any]:
        metrics = dict(compute_metrics(prediction))
        losses = prediction.losses  # known of the global view alone
        unknown = None if losses is None else np.full_like(losses, np.nan)
        logits = scaled(prediction.predictions, class_weights)
        personal = EvalPrediction(logits, prediction.label_ids, prediction.inputs, unknown)
        found = {
            f"{PERSONAL}{name.removeprefix(f'{prefix}_')}": value for name, value in compute_metrics(personal).items()
        }
        return metrics | {name: value for name, value in found.items() if name not in metrics}

    return both
