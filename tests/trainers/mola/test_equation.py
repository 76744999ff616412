"""MoLA's updates against the paper's equations, written out here row by row and pair by pair."""

import copy
from collections.abc import Callable
from math import exp, log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from hf_ext.adapters import MoLAConfig
from hf_ext.adapters.mola.routing import find_routing
from hf_ext.trainers import MoLATrainer, MoLATrainingConfig

RATE, SCALING = 0.1, 4 / 2
#: of 12 rows: task 1 has one row, in the first half; 3 occurs in the second half only, 2 never
TASKS = [0, 0, 0, 0, 1, 4, 0, 0, 3, 3, 4, 4]


@pytest.fixture
def rows(data: Dataset) -> Dataset:
    return data.select(range(12)).remove_columns("task_ids").add_column("task_ids", TASKS)


def _adapted(model: nn.Module, **config: Any) -> PeftModel:
    torch.manual_seed(1)
    found = get_peft_model(model, MoLAConfig(target_modules=["hidden"], num_experts=5, r=2, lora_alpha=4, **config))
    with torch.no_grad():  # at zero, where it starts, B would hide the gradient of A
        for name, weight in found.named_parameters():
            if "mola_B" in name:
                weight.normal_(std=0.3)
    return found


def _named(model: nn.Module, name: str) -> Any:
    (found,) = (weight for own, weight in model.named_parameters() if name in own)
    return found


def _row_losses(model: PeftModel, rows: Any, weights: list[Any]) -> list[Tensor]:
    """`y = W x + b + s sum_e w_e B_e A_e x`, then the rest of the model."""
    base: Any = model.get_base_model()
    first, lora_A, lora_B = base.hidden.base_layer, _named(model, "mola_A"), _named(model, "mola_B")
    losses = []
    for image, label, own in zip(rows["pixel_values"], rows["labels"], weights, strict=True):
        x = image.flatten().double()
        hidden = first.weight @ x + first.bias
        for expert, weight in enumerate(own):
            hidden = hidden + SCALING * weight * (lora_B[expert] @ (lora_A[expert] @ x))
        logits = base.classifier.weight @ hidden.tanh() + base.classifier.bias
        losses.append(F.cross_entropy(logits, label))
    return losses


def _step(model: nn.Module, loss: Any) -> None:
    params = [param for param in model.parameters() if param.requires_grad]
    grads = torch.autograd.grad(loss, params)
    with torch.no_grad():
        for param, grad in zip(params, grads, strict=True):
            param.sub_(RATE * grad)


@pytest.mark.parametrize(
    ("steps", "accumulating", "reduction"),
    [(2, False, "sample"), (1, False, "sum"), (2, False, "sum"), (2, True, "sum")],
)
def test_task_routing(
    steps: int,
    accumulating: bool,
    reduction: Any,
    rows: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    """A sample's gradient reaches the expert of its task alone; an expert without samples stays bit for bit."""
    model = _adapted(classifier(accumulating=accumulating)).double()
    by_hand, before = copy.deepcopy(model), copy.deepcopy(model)
    arguments = MoLATrainingConfig(
        **plain_sgd,
        max_steps=2,
        per_device_train_batch_size=12 // steps,
        gradient_accumulation_steps=steps,
        mola_task_reduction=reduction,
    )
    MoLATrainer(model, arguments, train_dataset=rows).train()
    for _ in range(2):
        losses = _row_losses(by_hand, rows[:], [[float(task == expert) for expert in range(5)] for task in TASKS])
        if reduction == "sample":
            loss: Any = sum(losses) / 12
        else:
            means = [
                sum(value for value, own in zip(losses, TASKS, strict=True) if own == task) / TASKS.count(task)
                for task in set(TASKS)
            ]
            loss = sum(means)
        _step(by_hand, loss)
    assert difference(model, by_hand) < 1e-12
    for name in ("mola_A", "mola_B"):
        assert torch.equal(_named(model, name)[2], _named(before, name)[2])
        moved = (_named(model, name) - _named(before, name)).abs().amax(dim=(1, 2))
        assert (moved > 0).tolist() == [True, True, False, True, True]


def _twd(features: Tensor, tasks: list[int], temperature: float) -> Tensor:
    unit = [row / row.norm() for row in features]
    terms = []
    for i, one in enumerate(unit):
        others = sum(torch.exp(one @ unit[k] / temperature) for k in range(len(unit)) if k != i)
        terms += [
            -torch.log(torch.exp(one @ unit[j] / temperature) / others)
            for j in range(len(unit))
            if j != i and tasks[i] == tasks[j]
        ]
    return torch.stack(terms).mean()


def test_the_loops_are_the_papers() -> None:
    """Of two like rows and one across, by hand."""
    features = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    assert _twd(features, [1, 1, 0], 0.5).item() == pytest.approx(-log(exp(2) / (exp(2) + 1)))


@pytest.mark.parametrize(("steps", "accumulating"), [(2, False), (2, True)])
def test_router_with_decorrelation(
    steps: int,
    accumulating: bool,
    rows: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    """The mean loss plus the weighted TwD loss; under accumulation the mean of the micro-batches' TwD losses."""
    config: dict[str, Any] = {"routing": "router", "twd_weight": 0.7, "twd_temperature": 0.6, "twd_dim": 3}
    torch.manual_seed(2)
    router = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    model = _adapted(classifier(accumulating=accumulating), router=router, **config)
    by_hand, without = copy.deepcopy(model), copy.deepcopy(model)
    arguments = MoLATrainingConfig(
        **plain_sgd,
        max_steps=2,
        per_device_train_batch_size=12 // steps,
        gradient_accumulation_steps=steps,
    )
    MoLATrainer(model, arguments, train_dataset=rows).train()
    for trained, twd_weight in ((by_hand, 0.7), (without, 0.0)):
        routing = find_routing(trained)
        assert routing is not None
        for _ in range(2):
            logits = routing.mola_router["default"](rows[:]["pixel_values"])
            shares = [row.exp() / row.exp().sum() for row in logits]
            loss = sum(_row_losses(trained, rows[:], shares)) / 12
            features = routing.mola_projection["default"](logits)
            for first in range(0, 12, 12 // steps):
                part = slice(first, first + 12 // steps)
                loss = loss + twd_weight * _twd(features[part], TASKS[part], 0.6) / steps
            _step(trained, loss)
    assert difference(model, by_hand) < 1e-6  # the router computes in float32
    assert difference(model, without) > 1e-3
