"""DivBS's updates by Gram-Schmidt on the gradients of the last layer, which autograd gives one by one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from hf_ext.trainers import DivBSConfig, DivBSTrainer

RATE = 0.1


def _losses(model: nn.Module, rows: Any) -> Tensor:
    return F.cross_entropy(model(rows["pixel_values"])["logits"], rows["labels"], reduction="none")


def _selected(model: Any, rows: Any, count: int, rule: str) -> list[int]:
    losses = _losses(model, rows)
    weight = model.classifier.weight
    gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0].flatten() for loss in losses]
    mean = sum(gradients) / len(gradients)
    basis: list[Tensor] = []
    picks: list[int] = []
    for _ in range(count):
        scores = []
        for row, gradient in enumerate(gradients):
            rest = gradient - sum((e @ gradient) * e for e in basis)
            score = (rest @ mean).abs() / (rest.norm() if rule == "projection" else 1)
            scores.append(-1.0 if row in picks else score.item())
        picks.append(scores.index(max(scores)))
        rest = gradients[picks[-1]] - sum((e @ gradients[picks[-1]]) * e for e in basis)
        basis.append(rest / rest.norm())
    return picks


@pytest.mark.parametrize(
    ("steps", "accumulating", "rule"), [(1, False, "residual"), (2, False, "residual"), (2, True, "projection")]
)
def test_two_updates(
    steps: int,
    accumulating: bool,
    rule: str,
    data: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    """Each micro-batch is selected from candidates of its own; the update's loss is the mean over what is kept."""
    model, by_hand = classifier(accumulating=accumulating), classifier()
    arguments = DivBSConfig(
        **plain_sgd,
        max_steps=2,
        per_device_train_batch_size=6 // steps,
        gradient_accumulation_steps=steps,
        divbs_ratio=0.25,
        divbs_rule=rule,
    )
    trainer = DivBSTrainer(model, arguments, train_dataset=data.remove_columns("task_ids"))
    trainer.train()
    differs = 0.0
    for update in range(2):
        kept = []
        for step in range(steps):
            first = (update * steps + step) * 24 // steps
            part = data[first : first + 24 // steps]
            rows = _selected(by_hand, part, 6 // steps, rule)
            kept.append(_losses(by_hand, {name: column[rows] for name, column in part.items()}))
        loss = torch.cat(kept).mean()
        candidates = _losses(by_hand, data[update * 24 : update * 24 + 24]).mean()
        differs = max(differs, abs(loss.item() - candidates.item()))
        params = list(by_hand.parameters())
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for param, grad in zip(params, grads, strict=True):
                param.sub_(RATE * grad)
    assert difference(model, by_hand) < 1e-12
    assert differs > 0.01  # what is kept is not like the rest
