"""TARF's updates against the paper's equations, written out here: three phases, k(t), tau, the cap on the ascent."""

from collections.abc import Callable
from math import ceil, exp, log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from hf_ext.trainers import TARFConfig, TARFTrainer
from hf_ext.trainers.tarf.forgetting import NPO

K, EPOCHS, T0, RATE = 0.9, 4, 1.5, 0.1
FORGET = range(8)  # of 32 rows; 24 remain, in two updates per epoch


@pytest.fixture
def rows(data: Dataset) -> Dataset:
    return data.select(range(32)).remove_columns("task_ids")


def _losses(model: nn.Module, rows: Any) -> Tensor:
    return F.cross_entropy(model(rows["pixel_values"])["logits"], rows["labels"], reduction="none")


def _retained(gravity: Tensor, original: Tensor, labels: Tensor, options: dict[str, Any]) -> list[float]:
    """tau of every remaining row."""
    if options["tarf_selection"] == "none":
        return [1.0] * len(gravity)
    values = gravity.tolist()
    if options["tarf_selection"] == "samples":
        beta = options.get("tarf_beta")
        if beta is None:
            beta = sorted(values, reverse=True)[ceil(options["tarf_top_fraction"] * len(values)) - 1]
        return [float(value < beta) for value in values]
    own = labels.tolist()
    means = {
        group: sum(value for value, label in zip(values, own, strict=True) if label == group) / own.count(group)
        for group in set(own)
    }
    if options.get("tarf_gravity") == "relative":
        before = original.tolist()
        for group in means:
            total = sum(value for value, label in zip(before, own, strict=True) if label == group)
            means[group] /= total / own.count(group)
    ranked = sorted(means, key=lambda group: means[group], reverse=True)
    dropped = ranked[: options["tarf_n_hidden_groups"]]
    return [float(label not in dropped) for label in own]


def _by_hand(model: nn.Module, rows: Dataset, options: dict[str, Any], *, tau: bool = True) -> list[str]:
    """All updates; returns the phases."""
    forget, remaining = rows[:8], rows[8:]
    original = _losses(model, remaining).detach()
    retained: list[float] | None = None
    phases = []
    for update in range(2 * EPOCHS):
        t = update / 2 if options.get("tarf_anneal_by") == "step" else float(update // 2)
        k_t = max(K * (EPOCHS - t - T0) / EPOCHS, 0.0)
        if options.get("tarf_schedule") == "constant":
            k_t = K if k_t > 0 else 0.0
        loss = torch.tensor(0.0, dtype=torch.float64)
        if k_t > 0:
            losses = _losses(model, forget)
            cap = options.get("tarf_max_forget_loss", float("inf"))
            loss = loss - k_t * sum(value for value in losses if value.item() <= cap) / 8
        if t >= options["tarf_t1"]:
            if retained is None:
                gravity = (original - _losses(model, remaining).detach()).abs()
                retained = _retained(gravity, original, remaining["labels"], options) if tau else [1.0] * 24
            half = slice(update % 2 * 12, update % 2 * 12 + 12)
            part = {name: column[half] for name, column in remaining.items()}
            losses = _losses(model, part)
            loss = loss + sum(mark * value for mark, value in zip(retained[half], losses, strict=True)) / 12
        phases.append(("I" if t < options["tarf_t1"] else "II") if k_t > 0 else "III")
        params = list(model.parameters())
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for param, grad in zip(params, grads, strict=True):
                param.sub_(RATE * grad)
    return phases


SELECTIONS = {
    "none": {"tarf_selection": "none", "tarf_t1": 1},
    "samples": {"tarf_selection": "samples", "tarf_top_fraction": 0.3, "tarf_t1": 1},
    "beta": {"tarf_selection": "samples", "tarf_beta": 0.05, "tarf_t1": 1},
    "groups": {"tarf_selection": "groups", "tarf_n_hidden_groups": 2, "tarf_t1": 1},
    "relative": {"tarf_n_hidden_groups": 2, "tarf_t1": 1, "tarf_gravity": "relative", "tarf_selection": "groups"},
    "constant": {"tarf_selection": "groups", "tarf_n_hidden_groups": 2, "tarf_t1": 1, "tarf_schedule": "constant"},
    "by step": {"tarf_selection": "samples", "tarf_top_fraction": 0.3, "tarf_t1": 0.5, "tarf_anneal_by": "step"},
    "capped": {"tarf_selection": "groups", "tarf_n_hidden_groups": 1, "tarf_t1": 1, "tarf_max_forget_loss": 1.7},
}


@pytest.mark.parametrize(
    ("kind", "steps", "accumulating"),
    [("samples", 1, False), ("samples", 2, True), *((kind, 2, False) for kind in SELECTIONS)],
)
def test_all_updates(
    kind: str,
    steps: int,
    accumulating: bool,
    rows: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    """Through the three phases. Every update sees all rows to forget, in whatever order."""
    options = SELECTIONS[kind]
    model, by_hand = classifier(accumulating=accumulating), classifier()
    arguments = TARFConfig(
        **plain_sgd,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=12 // steps,
        gradient_accumulation_steps=steps,
        tarf_forget_batch_size=8 // steps,
        tarf_k=K,
        tarf_t0=T0,
        **options,
    )
    trainer = TARFTrainer(model, arguments, train_dataset=rows, forget_dataset=FORGET)
    trainer.train()
    phases = _by_hand(by_hand, rows, options)
    assert set(phases) == {"I", "II", "III"}
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [("I", "II", "III")[entry["phase"] - 1] for entry in logs] == phases
    assert difference(model, by_hand) < 1e-12
    if options["tarf_selection"] != "none":
        _by_hand(everything := classifier(), rows, options, tau=False)
        assert difference(model, everything) > 1e-3
    if "tarf_max_forget_loss" in options:
        shares = [entry["capped_fraction"] for entry in logs if "capped_fraction" in entry]
        assert 0 < min(shares) < 1


def test_npo_is_of_whole_sequences() -> None:
    """`-2/beta log sigmoid(-beta log(p / p_original))` of probabilities of all of a sample's tokens together."""
    losses, original, lengths = [0.5, 2.0, 1.0], [0.7, 0.4, 1.0], [3, 1, 2]  # losses are means over tokens
    expected = []
    for own, before, number in zip(losses, original, lengths, strict=True):
        ratio = exp(-own * number) / exp(-before * number)
        expected.append(-2 / 0.3 * log(1 / (1 + exp(0.3 * log(ratio)))))
    values = NPO(0.3)(torch.tensor(losses), torch.tensor(original), torch.tensor(lengths))
    assert values.tolist() == pytest.approx(expected, rel=1e-5)
