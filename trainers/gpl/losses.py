"""The objective's loss of a whole graph, or of a batch of sampled neighbourhoods as a part of its update."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional import pu_risk
from hf_ext.functional.losses import IGNORED_LABEL
from hf_ext.trainers.gpl.epochs import RANKING, Epochs
from hf_ext.trainers.processes import gather_rows


def whole_losses(epochs: Epochs, logits: Tensor) -> dict[str, Tensor]:
    """Terms and total of all nodes, logits `[N]`."""
    if epochs.warms_up or epochs.args.gpl_objective in RANKING:
        return epochs.targets.losses(logits)
    return _risk(epochs, logits, epochs.graph.labels)


def batch_losses(
    epochs: Epochs, logits: Tensor, batch: dict[str, Any], num_items: Tensor | int, processes: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Terms and total of a batch's seeds, each as large as those of all nodes in the mean, and the batch's weight.

    The weighted totals of an update's batches add up to its loss, which DDP's mean over processes leaves as it is. A
    ranking's classes have the weights that they have in the whole graph. A risk is that of the seeds of all processes
    together, of each micro-batch for itself: whether its negatives' part is below 0 is decided there.

    Args:
        epochs: of this run.
        logits: `[n]`.
        batch: `labels` `[n]`, -100 of all but the seeds, and `node_ids` `[n]`.
        num_items: seeds of the update in all processes.
        processes: number of them.
    """
    seeds = batch["labels"] != IGNORED_LABEL
    if epochs.warms_up or epochs.args.gpl_objective in RANKING:
        number = seeds.sum()
        parts = epochs.targets.losses(logits, batch["node_ids"], seeds)
        scale = epochs.targets.counts.sum() / number.clamp(min=1)
        return {name: value * scale for name, value in parts.items()}, number * processes / num_items
    scores, labels = _of_all_processes(logits[seeds], batch["labels"][seeds], epochs.args.train_batch_size)
    return _risk(epochs, scores, labels), (labels != IGNORED_LABEL).sum() / num_items


def _risk(epochs: Epochs, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    args: Any = epochs.args
    return pu_risk(
        scores,
        labels == 1,
        labels == 0,
        prior=epochs.loss_prior,
        loss=args.gpl_pu_loss,
        kind=args.gpl_objective,
        beta=args.gpl_nnpu_beta,
        gamma=args.gpl_nnpu_gamma,
    )


def _of_all_processes(scores: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Seeds of all processes, filled up to as many in each, since gathering wants that."""
    missing = (0, max(most - len(scores), 0))
    return gather_rows(F.pad(scores, missing)), gather_rows(F.pad(labels, missing, value=IGNORED_LABEL))
