"""Terms that a mixin adds to a loss, under gradient accumulation: what the update follows is written out here."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_ext.trainers import MethodMixin


class _WithTerms(MethodMixin, Trainer):
    """Adds three times the mean of the squared logits, and twice the sum of the first ones."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        logits = outputs["logits"]
        loss = self.add_mean_term(loss, 3 * logits.square().mean(), num_items_in_batch)
        loss = self.add_sum_term(loss, 2 * logits[:, 0].sum(), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def _own(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["batch mean", "num_items_in_batch", "compute_loss_func"])
def test_terms_of_a_mean_and_of_a_sum(
    kind: str,
    steps: int,
    data: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[[nn.Module, nn.Module], float],
) -> None:
    accumulating = kind != "batch mean"
    model, by_hand = classifier(accumulating=accumulating), classifier()
    arguments = TrainingArguments(
        **plain_sgd, max_steps=1, per_device_train_batch_size=12 // steps, gradient_accumulation_steps=steps
    )
    own = _own if kind == "compute_loss_func" else None
    rows = data.remove_columns("task_ids")
    trainer = _WithTerms(model, arguments, train_dataset=rows, compute_loss_func=own)
    trainer.train()
    batch = data[:12]
    logits = by_hand(batch["pixel_values"])["logits"]
    loss = F.cross_entropy(logits, batch["labels"]) + 3 * logits.square().mean() + 2 * logits[:, 0].sum()
    loss.backward()
    with torch.no_grad():
        for param in by_hand.parameters():
            assert param.grad is not None
            param.sub_(0.1 * param.grad)
    assert difference(model, by_hand) < 1e-12
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item())


def test_a_loss_without_a_count_of_items_is_a_mean(
    data: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any]
) -> None:
    """Even of a model that could take one: Trainer divides, and the sum must not be divided."""
    arguments = TrainingArguments(**plain_sgd, gradient_accumulation_steps=4)
    trainer = _WithTerms(classifier(accumulating=True), arguments, train_dataset=data)
    trainer.current_gradient_accumulation_steps = 4
    assert (trainer.sum_scale(None), trainer.sum_scale(7)) == (4, 1)
