"""How the domains' losses fall in a training: recorded at every update, and what is read off them."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_ext.functional import domain_sums, domain_variance, per_sample_losses
from hf_ext.trainers import DISAMTrainer
from hf_ext.trainers.losses import logits_of

WINDOW = 20  # updates over which losses are averaged


class Watched(DISAMTrainer):
    """Keeps the domains' losses and samples of every update, `[2, D]`, at the weights as they are before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.curve: list[Tensor] = []
        super().__init__(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training and len(self.curve) == self.state.global_step:  # an update's first pass, not its perturbed
            losses = per_sample_losses(logits_of(outputs).detach(), inputs["labels"])
            ids, number = self.batch_columns["domain_ids"], self.args.disam_num_domains
            self.curve.append(torch.stack(domain_sums(losses, ids, num_domains=number)))
        return (loss, outputs) if return_outputs else loss


def steps_to(losses: Tensor, threshold: float) -> float:
    """The update by which the mean loss of the last ones first is under the threshold; all of them if it never is."""
    means = losses.unfold(0, min(WINDOW, len(losses)), 1).mean(1)
    under = (means < threshold).nonzero()
    return float(under[0, 0] + min(WINDOW, len(losses)) if len(under) else len(losses))


def variance(sums: Tensor, counts: Tensor) -> float:
    """Mean over stretches of `WINDOW` updates of the variance of the domains' mean losses; inputs `[T, D]`."""
    variances = []
    for part, number in zip(sums.split(WINDOW), counts.split(WINDOW), strict=True):
        total, count = part.sum(0), number.sum(0)
        variances.append(domain_variance(total / count.clamp(min=1), count))
    return float(torch.stack(variances).mean())
