"""DISAM's updates against the paper's equations, written out here: domains of one row, absent ones, accumulation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer

from hf_ext.trainers import DISAMConfig, DISAMTrainer

RHO, LAMBDA, RATE = 0.3, 2.0, 0.1
#: of 24 rows: domain 1 has one row, in the first half; 3 occurs in the second half only, 2 never
DOMAINS = [*[0] * 10, 1, 4, *[0] * 5, *[3] * 4, *[4] * 3]


@pytest.fixture
def rows(data: Dataset) -> Dataset:
    return data.select(range(24)).remove_columns("task_ids").add_column("domain_ids", DOMAINS)


def _losses(model: nn.Module, rows: Any) -> Tensor:
    return F.cross_entropy(model(rows["pixel_values"])["logits"], rows["labels"], reduction="none")


def _mean_losses(losses: Tensor, domains: list[int]) -> dict[int, Tensor]:
    return {
        domain: sum((loss for loss, own in zip(losses, domains, strict=True) if own == domain), torch.tensor(0.0))
        / domains.count(domain)
        for domain in sorted(set(domains))
    }


def _ascent_loss(losses: Tensor, domains: list[int]) -> Tensor:
    means = list(_mean_losses(losses, domains).values())
    center = sum(means) / len(means)
    return losses.mean() - LAMBDA * sum((mean - center) ** 2 for mean in means) / len(means)


def _update(model: nn.Module, rows: Any, ascent: Tensor, *, adaptive: bool = False) -> None:
    params = list(model.parameters())
    grads = torch.autograd.grad(ascent, params)
    scaled = [g * p.detach().abs() if adaptive else g for g, p in zip(grads, params, strict=True)]
    norm = torch.stack([(g**2).sum() for g in scaled]).sum().sqrt() + 1e-12
    clean = [param.detach().clone() for param in params]
    with torch.no_grad():
        for param, g in zip(params, grads, strict=True):
            param.add_(RHO / norm * g * (param**2 if adaptive else 1))
    grads = torch.autograd.grad(_losses(model, rows).mean(), params)
    with torch.no_grad():
        for param, before, g in zip(params, clean, grads, strict=True):
            param.copy_(before - RATE * g)


def _train(model: nn.Module, rows: Dataset, sgd: dict[str, Any], **extra: Any) -> DISAMTrainer:
    arguments = DISAMConfig(**{**sgd, "disam_rho": RHO, "disam_lambda": LAMBDA, **extra})
    trainer = DISAMTrainer(model, arguments, train_dataset=rows)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("steps", "accumulating", "adaptive"),
    [(1, False, False), (2, False, False), (2, False, True), (3, True, False)],
)
def test_two_updates(
    steps: int,
    accumulating: bool,
    adaptive: bool,
    rows: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    """The variance is that of the domains in the whole update, in how many micro-batches whatsoever."""
    model, by_hand = classifier(accumulating=accumulating), classifier()
    trainer = _train(
        model,
        rows,
        plain_sgd,
        max_steps=2,
        per_device_train_batch_size=24 // steps,
        gradient_accumulation_steps=steps,
        disam_adaptive=adaptive,
    )
    whole = rows[:]
    for update in range(2):
        losses = _losses(by_hand, whole)
        assert trainer.state.log_history[update]["clean_loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
        _update(by_hand, whole, _ascent_loss(losses, DOMAINS), adaptive=adaptive)
    assert difference(model, by_hand) < 1e-12
    sam = classifier()
    for _ in range(2):
        _update(sam, whole, _losses(sam, whole).mean(), adaptive=adaptive)
    assert difference(model, sam) > 1e-4


def test_domains_that_are_absent_in_one_update(
    rows: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any], difference: Callable[..., float]
) -> None:
    """They are no part of the variance, and what is logged of the update does not name them."""
    model, by_hand = classifier(), classifier()
    trainer = _train(model, rows, plain_sgd, max_steps=2, per_device_train_batch_size=12)
    for update in range(2):
        part, domains = rows[update * 12 : update * 12 + 12], DOMAINS[update * 12 : update * 12 + 12]
        losses = _losses(by_hand, part)
        means = _mean_losses(losses, domains)
        logged = trainer.state.log_history[update]
        expected = {f"domain_loss/{domain}": mean.item() for domain, mean in means.items()}
        assert {name: value for name, value in logged.items() if name.startswith("domain_loss/")} == pytest.approx(
            expected, rel=1e-6
        )
        spread = torch.stack(list(means.values())).var(correction=0).item()
        assert logged["domain_loss_variance"] == pytest.approx(spread, rel=1e-6)
        for domain, mean in means.items():
            pull = 2 * LAMBDA / len(means) * (mean - sum(means.values()) / len(means))
            share = domains.count(domain) / 12 - pull.item()
            assert logged[f"ascent_weight/{domain}"] == pytest.approx(share, rel=1e-5)
        _update(by_hand, part, _ascent_loss(losses, domains))
    assert difference(model, by_hand) < 1e-12


def test_running_means(
    rows: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any], difference: Callable[..., float]
) -> None:
    """Three updates with other domains: the weights go by the running means of those present that were seen before."""
    model, by_hand = classifier(), classifier()
    running = {"disam_domain_weights": "running", "disam_running_decay": 0.75}
    _train(
        model,
        rows,
        plain_sgd,
        max_steps=4,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=2,
        **running,
    )
    seen: dict[int, float] = {}
    for update in range(4):  # the two halves, twice
        half = slice(update % 2 * 12, update % 2 * 12 + 12)
        part, domains = rows[half], DOMAINS[half]
        losses = _losses(by_hand, part)
        ascent = losses.mean()
        present = [domain for domain in sorted(set(domains)) if domain in seen]
        for domain in present:
            pull = seen[domain] - sum(seen[other] for other in present) / len(present)
            own = torch.tensor([other == domain for other in domains])
            ascent = ascent - 2 * LAMBDA / len(present) * pull * losses[own].mean()
        for domain, mean in _mean_losses(losses.detach(), domains).items():
            seen[domain] = 0.75 * seen[domain] + 0.25 * mean.item() if domain in seen else mean.item()
        _update(by_hand, part, ascent)
    assert difference(model, by_hand) < 1e-7  # the running means are kept in float32


def test_logs_are_means_over_updates(
    rows: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any]
) -> None:
    """The losses of a domain are averaged over its rows in all of them, everything else over the updates."""
    each, both = (
        _train(classifier(), rows, plain_sgd | {"logging_steps": steps}, max_steps=2, per_device_train_batch_size=12)
        for steps in (1, 2)
    )
    (first, second), logged = each.state.log_history[:2], both.state.log_history[0]
    for name in ("loss", "clean_loss", "domain_loss_variance", "perturbation_norm"):
        assert logged[name] == pytest.approx((first[name] + second[name]) / 2, rel=1e-4), name
    for domain in sorted(set(DOMAINS)):
        weights = [entry.get(f"ascent_weight/{domain}", 0.0) for entry in (first, second)]
        assert logged[f"ascent_weight/{domain}"] == pytest.approx(sum(weights) / 2, rel=1e-4)
        counts = [DOMAINS[:12].count(domain), DOMAINS[12:].count(domain)]
        losses = [entry.get(f"domain_loss/{domain}", 0.0) for entry in (first, second)]
        mean = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
        assert logged[f"domain_loss/{domain}"] == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize(("rho", "passes"), [(RHO, 2), (0.0, 1)])
def test_operations_of_both_passes_count(
    rho: float, passes: int, rows: Dataset, vit: Callable[..., Any], plain_sgd: dict[str, Any]
) -> None:
    model, inputs = vit(), rows[:4]
    trainer = DISAMTrainer(model, DISAMConfig(**plain_sgd, disam_rho=rho), train_dataset=rows)
    once = Trainer.floating_point_ops(trainer, inputs)
    assert trainer.floating_point_ops(inputs) == passes * once > 0
