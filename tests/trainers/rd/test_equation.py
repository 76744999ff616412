"""RD's updates against the equations, written out here: four terms, their weights and decay, what gets no gradient."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from hf_ext.models import RDForImageClassification
from hf_ext.trainers import RDTrainer, RDTrainingConfig

RATE, ALPHA, GAMMA, BETA, TAU = 0.1, 0.5, 2.0, 0.7, 3.0


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 7, dtype=torch.float64)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.linear(pixel_values.flatten(1)).tanh()


@pytest.fixture
def model(vit: Callable[..., Any]) -> RDForImageClassification:
    student = vit(hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    return RDForImageClassification.from_student(student, Teacher(), teacher_width=7).double()


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([row.exp().sum().log() - row[y] for row, y in zip(logits, labels, strict=True)]).mean()


def _alignment(r: Tensor, s: Tensor) -> Tensor:
    """By the centred Gram matrices, `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`."""
    centre = torch.eye(len(r), dtype=r.dtype) - 1 / len(r)
    k, m = (centre @ (x @ x.T) @ centre for x in (r, s))
    return torch.trace(k @ m) / (torch.trace(k @ k) * torch.trace(m @ m)).sqrt()


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    p, q = ((logits / TAU).exp() / (logits / TAU).exp().sum(1, keepdim=True) for logits in (teacher, student))
    return TAU**2 * (p * (p / q).log()).sum(1).mean()


def _loss(model: Any, images: Tensor, labels: Tensor, left: float, *, detached: bool) -> Tensor:
    student = model.student.vit(images).last_hidden_state[:, 0]
    reprogrammed = model.phi(model.teacher(images).detach())
    head = model.student.classifier
    logits, others = (features @ head.weight.T + head.bias for features in (student, reprogrammed))
    aligned = _alignment(reprogrammed.detach() if detached else reprogrammed, student)
    loss = _entropy(logits, labels) + left * ALPHA * _entropy(others, labels) - GAMMA * aligned
    return loss + left * BETA * _divergence(others.detach(), logits)


@pytest.mark.parametrize(
    ("steps", "decay", "detached"), [(1, "none", False), (1, "linear", True), (2, "linear", False)]
)
def test_three_updates(
    steps: int,
    decay: Any,
    detached: bool,
    model: RDForImageClassification,
    data: Dataset,
    plain_sgd: dict[str, Any],
    difference: Callable[[nn.Module, nn.Module], float],
) -> None:
    """Under accumulation the mean over micro-batches; decaying, alpha and beta of update k are 1 - k/3 of theirs."""
    by_hand, before = copy.deepcopy(model), copy.deepcopy(model)
    images, labels = data[:]["pixel_values"].double(), data[:]["labels"]
    rows: Any = [{"pixel_values": image, "labels": y} for image, y in zip(images, labels, strict=True)]
    arguments = RDTrainingConfig(
        **plain_sgd,
        max_steps=3,
        per_device_train_batch_size=16 // steps,
        gradient_accumulation_steps=steps,
        rd_alpha=ALPHA,
        rd_gamma=GAMMA,
        rd_beta=BETA,
        rd_temperature=TAU,
        rd_decay=decay,
        rd_detach_reprogrammed=detached,
    )
    RDTrainer(model, arguments, train_dataset=rows).train()
    for update in range(3):
        left = 1 - update / 3 if decay == "linear" else 1.0
        loss: Any = 0
        for step in range(steps):
            first = update * 16 + step * 16 // steps
            part = slice(first, first + 16 // steps)
            loss = loss + _loss(by_hand, images[part], labels[part], left, detached=detached) / steps
        params = [param for param in by_hand.parameters() if param.requires_grad]
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for param, grad in zip(params, grads, strict=True):
                param.sub_(RATE * grad)
    assert difference(model, by_hand) < 1e-12
    assert difference(model, before) > 1e-3
