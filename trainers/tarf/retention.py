"""What unlearning leaves of the rest: the accuracy on retained rows before the first step and after the last."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset
from transformers.utils import logging

from hf_ext.functional.losses import IGNORED_LABEL
from hf_ext.trainers.losses import logits_of, shifts_labels
from hf_ext.trainers.processes import model_of
from hf_ext.trainers.tarf.identification import row_batches
from hf_ext.trainers.tarf.paired import ROW

logger = logging.get_logger(__name__)

#: of the remaining rows, the share that is looked at, and how many these are at least and at most
SHARE, FEWEST, MOST = 0.1, 16, 256
#: what may be lost without a warning: so much accuracy, and so many labels, since of few rows one is much
TOLERATED, TOLERATED_LABELS = 0.05, 2


def sampled_rows(data: Any) -> list[int]:
    """Places of the rows that are looked at, evenly spread; none in a stream."""
    size = len(data) if hasattr(data, "__len__") else 0
    return evenly_spread(size, min(max(int(SHARE * size), FEWEST), MOST))


def evenly_spread(size: int, most: int) -> list[int]:
    """So many places at most in `range(size)`, the first and the last among them."""
    number = min(most, size)
    return torch.linspace(0, size - 1, number, dtype=torch.float64).long().unique().tolist() if number else []


def predicted_labels(trainer: Any, data: Any, rows: list[int]) -> Tensor | None:
    """How many labels of every row are predicted and how many it has, in evaluation mode: `[N, 2]`, on the CPU.

    Args:
        trainer: as for `row_batches`.
        data: with a length.
        rows: N places in it.

    Returns:
        The same in all processes, which share the work; None where nothing can be right or wrong: numbers, several
        labels a sample.
    """
    counts = torch.zeros(len(rows), 2, dtype=torch.int64, device=trainer.args.device)
    model = model_of(trainer)
    for is_new, inputs in row_batches(trainer, Subset(data, rows)):
        labels, places = inputs["labels"], trainer.batch_columns[ROW]
        with torch.no_grad(), trainer.compute_loss_context_manager():
            logits = logits_of(model(**inputs))
        if labels.is_floating_point() or labels.shape != logits.shape[:-1] or logits.shape[-1] == 1:
            return None
        if is_new:
            counts[places] = right_and_all(logits, labels, shifted=shifts_labels(trainer))
    reduced: Tensor = trainer.accelerator.reduce(counts)
    return reduced.cpu()


def right_and_all(logits: Tensor, labels: Tensor, *, shifted: bool) -> Tensor:
    """Labels predicted and labels of every sample: logits `[B, (S,) C]`, labels int `[B (, S)]` -> `[B, 2]`."""
    if shifted and labels.ndim == 2:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels.ne(IGNORED_LABEL)
    right = logits.argmax(dim=-1).eq(labels) & counted
    return torch.stack([value.reshape(len(labels), -1).sum(dim=1) for value in (right, counted)], dim=1)


class Retention:
    """The accuracy on retained rows of one run, and a warning where much of it is lost."""

    def __init__(self) -> None:
        #: of the original model, see `predicted_labels`
        self.before: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {} if self.before is None else {"tarf_predicted_before": self.before}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.before = state.get("tarf_predicted_before")

    def begin(self, trainer: Any, data: Any) -> None:
        """Before the first step."""
        if rows := sampled_rows(data):
            self.before = predicted_labels(trainer, data, rows)

    def end(self, trainer: Any, data: Any, retained: Tensor | None) -> dict[str, float]:
        """After the last step: what is to be logged.

        Args:
            trainer, data: as before the first step.
            retained: tau of every row of `data`; those that were left out on purpose do not count.
        """
        rows = sampled_rows(data)
        if self.before is None or len(self.before) != len(rows):  # of other data, before the run was resumed
            return {}
        if (after := predicted_labels(trainer, data, rows)) is None:
            return {}
        kept = torch.ones(len(rows)) if retained is None else retained.cpu()[rows]
        rights, accuracies = [], []
        for counts in (self.before, after):
            right, total = (counts * kept.unsqueeze(1)).sum(dim=0).tolist()
            if not total:
                return {}
            rights.append(right)
            accuracies.append(right / total)
        if accuracies[1] < accuracies[0] - TOLERATED and rights[1] < rights[0] - TOLERATED_LABELS:
            logger.warning(
                f"the accuracy on the retained rows was {accuracies[0]:.1%} before unlearning and is "
                f"{accuracies[1]:.1%} after it: lower tarf_k, the learning rate or tarf_max_forget_loss, or train "
                "for more epochs"
            )
        return dict(zip(("retain_accuracy_before", "retain_accuracy"), accuracies, strict=True))
