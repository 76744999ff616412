"""What unlearning leaves of the rest: the accuracy on remaining rows before the first step and after the last."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset
from transformers.utils import logging

from hf_ext.functional.losses import IGNORED_LABEL
from hf_ext.trainers.losses import logits_of, shifts_labels
from hf_ext.trainers.tarf.identification import model_of, row_batches

logger = logging.get_logger(__name__)

#: of the remaining rows, the share that the accuracy is measured on, and how many these are at least and at most
SHARE, FEWEST, MOST = 0.1, 16, 256
#: points of accuracy that may be lost without a warning
TOLERATED = 0.05


def retained_accuracy(trainer: Any, data: Any) -> float | None:
    """Accuracy on some of these rows, evenly spread, in evaluation mode: of tokens where these are predicted.

    Args:
        trainer: as for `row_batches`.
        data: the remaining rows.

    Returns:
        In [0, 1], the same in all processes, which share the work; None where nothing can be right or wrong: streams,
        numbers, several labels a sample.
    """
    if not hasattr(data, "__len__") or not len(data):
        return None
    number = min(max(int(SHARE * len(data)), FEWEST), MOST, len(data))
    rows = torch.linspace(0, len(data) - 1, number).long().unique().tolist()
    counts = torch.zeros(2, device=trainer.args.device)
    model = model_of(trainer)
    for is_new, inputs in row_batches(trainer, Subset(data, rows)):
        labels = inputs["labels"]
        with torch.no_grad(), trainer.compute_loss_context_manager():
            logits = logits_of(model(**inputs))
        if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
            return None
        if is_new:
            counts += right_and_all(logits, labels, shifted=shifts_labels(trainer))
    right, total = trainer.accelerator.reduce(counts).tolist()
    return right / total if total else None


def right_and_all(logits: Tensor, labels: Tensor, *, shifted: bool) -> Tensor:
    """How many labels are predicted and how many there are, `[2]`; logits `[B, (S,) C]`, labels int `[B (, S)]`."""
    if shifted and labels.ndim == 2:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels.ne(IGNORED_LABEL)
    return torch.stack([(logits.argmax(dim=-1).eq(labels) & counted).sum(), counted.sum()])


class Retention:
    """The accuracy on remaining rows of one run, and a warning where much of it is lost."""

    def __init__(self) -> None:
        self.before: float | None = None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"tarf_retained_accuracy": self.before}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.before = state.get("tarf_retained_accuracy")

    def begin(self, trainer: Any, data: Any) -> None:
        """Before the first step."""
        self.before = retained_accuracy(trainer, data)

    def end(self, trainer: Any, data: Any) -> dict[str, float]:
        """After the last step: what is to be logged."""
        if self.before is None or (after := retained_accuracy(trainer, data)) is None:
            return {}
        if after < self.before - TOLERATED:
            logger.warning(
                f"the accuracy on the remaining rows was {self.before:.1%} before unlearning and is {after:.1%} after "
                "it: lower tarf_k, the learning rate or tarf_max_forget_loss, or train for more epochs"
            )
        return {"retain_accuracy_before": self.before, "retain_accuracy": after}
