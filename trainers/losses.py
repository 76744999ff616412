"""Losses of samples in a Trainer: which form the model's own has, and the logits that they are taken from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_ext._models import base_model
from hf_ext.functional import per_sample_losses
from hf_ext.functional.losses import IGNORED_LABEL


def logits_of(outputs: Any, *, with_loss: bool = True) -> Any:
    """The logits among a model's outputs, a mapping, a tuple or a tensor; None if there are none.

    Args:
        outputs: of a forward pass.
        with_loss: whether the model was given labels, so that a tuple begins with the loss.
    """
    if isinstance(outputs, Tensor):
        return None if with_loss else outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits")
    place = 1 if with_loss else 0
    return outputs[place] if len(outputs) > place else None


def shifts_labels(trainer: Trainer) -> bool:
    """Whether the model's own loss lets position i predict label i + 1.

    Trainer goes by the model's `loss_type`, which some causal language models (GPT-2) do not have: these use the
    shifted loss all the same.
    """
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    kinds = type(base_model(trainer.model)).__mro__
    return trainer._loss_shifts_labels or any(kind.__name__ in causal for kind in kinds)


def counts_labels(trainer: Trainer, inputs: Any) -> Tensor:
    """Whether any label of a batch is a part of its loss, as a scalar on the labels' device; True if nothing says so.

    Without one (-100 alone) the mean of the losses is 0/0, and its gradient zero.
    """
    labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
    if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.ndim:
        return torch.tensor(True)
    if labels.ndim > 1 and "shift_labels" not in inputs and shifts_labels(trainer):
        labels = labels[..., 1:]
    return labels.ne(IGNORED_LABEL).any()


def label_places(model: Any, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """Labels as columns of the logits; -100 stays.

    A model of ours says in `first_label` what the first column is called, where its logits are those of all classes
    and not of candidates that a batch brings.
    """
    first = 0 if "candidate_ids" in inputs else int(getattr(base_model(model), "first_label", 0))
    return labels.where(labels == IGNORED_LABEL, labels - first) if first else labels


def sample_losses(trainer: Trainer, logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """The model's own loss of every sample, `[B]`: `per_sample_losses`, with what the model says of its problem.

    Raises:
        ValueError: as there.
    """
    config = getattr(base_model(trainer.model), "config", None)
    return per_sample_losses(
        logits,
        labels,
        shift_labels=shifts_labels(trainer),
        label_smoothing=label_smoothing,
        regression=getattr(config, "problem_type", None) == "regression",
    )
