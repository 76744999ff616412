"""Updates of FedLESAM, SCAFFOLD, FedDyn and FedProx against the equations, written out here, with plain SGD."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext.trainers import DISAMArguments, DISAMMixin
from hf_ext.trainers.federated import FedLESAMConfig, FedLESAMMixin, FedLESAMTrainer
from hf_ext.trainers.federated.rounds import Contribution, FederatedMixin, Round

RHO, LAMB, MU, RATE, DECAY = 0.5, 0.4, 0.3, 0.1, 0.01
Weights = dict[str, Tensor]


def _copy(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def _like(weights: Mapping[str, Tensor], seed: int, size: float = 0.1) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in weights.items()
    }


def _norm(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in tensors.values()]).norm()


class ByHand:
    """A client's round, from the equations: a batch per update, all in one pass."""

    def __init__(self, model: nn.Module, round: Round, *, variant: str = "base", rho: float = RHO) -> None:
        self.model, self.round, self.variant = model, round, variant
        received, earlier = round.received, round.memory.get("received")
        self.eps = {name: torch.zeros_like(value) for name, value in received.items()}
        if earlier is not None and rho:
            change = {name: earlier[name] - received[name] for name in received}
            self.eps = {name: rho * one / _norm(change) for name, one in change.items()}
        self.sum_of_rates = 0.0

    def added(self, name: str, weight: Tensor) -> Tensor:
        """To the gradient at `w`."""
        mu, received = self.round.config.get("proximal-mu", 0.0), self.round.received[name]
        total = mu * (weight - received)
        own = self.round.memory.get("control", {}).get(name, torch.zeros_like(weight))
        if self.variant == "S":
            common = self.round.broadcast.get("control", {}).get(name, torch.zeros_like(weight))
            total = total + LAMB * (common - own)
        if self.variant == "D":
            total = total + LAMB * (weight - received + own)
        return total

    def update(self, rows: Any, *, rate: float = RATE, clip: float = 0.0, decayed: tuple[str, ...] = ()) -> None:
        weights = _copy(self.model)
        with torch.no_grad():
            for name, param in self.model.named_parameters():
                param.add_(self.eps[name])
        loss = F.cross_entropy(self.model(rows["pixel_values"])["logits"], rows["labels"])
        names, params = zip(*self.model.named_parameters(), strict=True)
        found = dict(zip(names, torch.autograd.grad(loss, params), strict=True))
        grads = {name: grad + self.added(name, weights[name]) for name, grad in found.items()}
        if clip:
            scale = min(1.0, clip / (_norm(grads).item() + 1e-6))
            grads = {name: grad * scale for name, grad in grads.items()}
        with torch.no_grad():
            for name, param in self.model.named_parameters():
                decay = DECAY * weights[name] if name in decayed else 0.0
                param.copy_(weights[name] - rate * (grads[name] + decay))
        self.sum_of_rates += rate

    def control(self) -> Weights:
        new = {}
        for name, weight in self.model.named_parameters():
            own = self.round.memory.get("control", {}).get(name, torch.zeros_like(weight))
            move = weight.detach() - self.round.received[name]
            common = self.round.broadcast.get("control", {}).get(name, 0.0)
            new[name] = own - common - move / self.sum_of_rates if self.variant == "S" else own + move
        return new


def _round(model: nn.Module, *, variant: str = "base", first: bool = False, source: str = "client", mu: float = 0.0):
    """One in which the client has an earlier model and controls, unless it is its first."""
    received = _copy(model)
    memory: dict[str, Weights] = {}
    broadcast: dict[str, Weights] = {}
    if not first:
        steps = _like(received, 1)
        earlier = {name: value + steps[name] for name, value in received.items()}
        if source == "client":
            memory["received"] = earlier
        else:
            broadcast["global-update"] = {name: received[name] - earlier[name] for name in received}
        if variant != "base":
            memory["control"] = _like(received, 2)
        if variant == "S":
            broadcast["control"] = _like(received, 3)
    config = {"fedlesam-variant": variant, "fedlesam-source": source, "proximal-mu": mu}
    return Round(number=2, client=1, config=config, received=received, broadcast=broadcast, memory=memory)


def _train(model: nn.Module, rows: Dataset, sgd: dict[str, Any], round: Round, **extra: Any) -> Contribution:
    options = {"max_steps": 3, "per_device_train_batch_size": 8, "fedlesam_rho": RHO, "fedlesam_lamb": LAMB}
    variant, source = round.config["fedlesam-variant"], round.config["fedlesam-source"]
    args = FedLESAMConfig(**{**sgd, **options, "fedlesam_variant": variant, "fedlesam_source": source, **extra})
    trainer = FedLESAMTrainer(model, args, train_dataset=rows)
    trainer.begin_round(round)
    trainer.train()
    return trainer.end_round()


@pytest.fixture
def rows(data: Dataset) -> Dataset:
    return data.select(range(24)).remove_columns("task_ids")


def _batches(rows: Dataset) -> list[Any]:
    return [rows[start : start + 8] for start in (0, 8, 16)]


@pytest.mark.parametrize("source", ["client", "server"])
@pytest.mark.parametrize(("accumulation", "clip"), [(1, 0.0), (2, 0.0), (2, 0.25)])
@pytest.mark.parametrize("variant", ["base", "S", "D"])
def test_three_updates(
    variant: str,
    accumulation: int,
    clip: float,
    source: str,
    rows: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    """In one micro-batch or two of them; FedProx's term on top; what the client keeps and sends."""
    model, hand = classifier(accumulating=True), classifier()
    round = _round(model, variant=variant, source=source, mu=MU)
    given = _train(
        model,
        rows,
        plain_sgd,
        round,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=clip,
    )
    by_hand = ByHand(hand, _round(hand, variant=variant, mu=MU), variant=variant)
    for batch in _batches(rows):
        by_hand.update(batch, clip=clip)
    assert difference(model, hand) < 1e-12
    control = by_hand.control() if variant != "base" else {}
    assert given.memory.keys() == ({"control"} if control else set()) | ({"received"} if source == "client" else set())
    for name, value in control.items():
        torch.testing.assert_close(given.memory["control"][name], value, rtol=0, atol=1e-11)
    if source == "client":
        assert all(torch.equal(given.memory["received"][name], value) for name, value in round.received.items())
    if variant == "S":
        for name, value in control.items():
            change = value - round.memory["control"][name]
            torch.testing.assert_close(given.sent["control"][name], change, rtol=0, atol=1e-11)
    else:
        assert not given.sent
    # and what is left out is missed
    for other in ({"rho": 0.0}, {"variant": "base"} if variant != "base" else {"rho": -RHO}):
        hand = classifier()
        by_hand = ByHand(hand, _round(hand, variant=variant, mu=MU), **{"variant": variant, **other})
        for batch in _batches(rows):
            by_hand.update(batch, clip=clip)
        assert difference(model, hand) > 1e-5


def test_fedprox_alone(
    rows: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any], difference: Callable[..., float]
) -> None:
    model, hand = classifier(accumulating=True), classifier()
    accumulating = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    _train(model, rows, plain_sgd, _round(model, mu=MU), fedlesam_rho=0.0, **accumulating)
    by_hand = ByHand(hand, _round(hand, mu=MU), rho=0.0)
    for batch in _batches(rows):
        by_hand.update(batch)
    assert difference(model, hand) < 1e-12


@pytest.mark.parametrize("variant", ["base", "S", "D"])
def test_a_first_round_has_no_perturbation_and_no_controls(
    variant: str,
    rows: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    model, hand = classifier(), classifier()
    given = _train(model, rows, plain_sgd, _round(model, variant=variant, first=True))
    by_hand = ByHand(hand, _round(hand, variant=variant, first=True), variant=variant)
    for batch in _batches(rows):
        by_hand.update(batch)
    assert difference(model, hand) < 1e-12
    assert "received" in given.memory and ("control" in given.memory) == (variant != "base")


@pytest.mark.parametrize("variant", ["base", "S", "D"])
def test_weight_decay_is_at_the_unmoved_weights(
    variant: str,
    rows: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    """It is SGD's, of matrices alone, and a part of the steps that the control of S is the mean of."""
    model, hand = classifier(), classifier()
    given = _train(model, rows, plain_sgd, _round(model, variant=variant), weight_decay=DECAY)
    by_hand = ByHand(hand, _round(hand, variant=variant), variant=variant)
    for batch in _batches(rows):
        by_hand.update(batch, decayed=("hidden.weight", "classifier.weight"))
    assert difference(model, hand) < 1e-12
    for name, value in by_hand.control().items() if variant != "base" else ():
        torch.testing.assert_close(given.memory["control"][name], value, rtol=0, atol=1e-11)


def test_the_rates_of_a_schedule_are_added_up(
    rows: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any], difference: Callable[..., float]
) -> None:
    """Linear from 0.1 over three updates, after a warm-up of one at a rate of 0; S only is made of them."""
    model, hand = classifier(), classifier()
    schedule = {"lr_scheduler_type": "linear", "warmup_steps": 1, "max_steps": 4}
    given = _train(model, rows, plain_sgd, _round(model, variant="S"), **schedule)
    by_hand = ByHand(hand, _round(hand, variant="S"), variant="S")
    batches = _batches(rows)
    for batch, rate in zip([*batches, batches[0]], (0.0, RATE, RATE * 2 / 3, RATE / 3), strict=True):
        by_hand.update(batch, rate=rate)
    assert difference(model, hand) < 1e-12
    for name, value in by_hand.control().items():
        torch.testing.assert_close(given.memory["control"][name], value, rtol=0, atol=1e-11)


class Groups(FedLESAMTrainer):
    """The classifier learns at a tenth of the rate, the hidden layer's bias not at all."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            parts = self.model.named_parameters()
            rates = {"hidden.weight": RATE, "hidden.bias": 0.0}
            groups = [{"params": [param], "lr": rates.get(name, RATE / 10)} for name, param in parts]
            self.optimizer = torch.optim.SGD(groups, lr=RATE)
        return super().create_optimizer(model)


def test_parameters_with_rates_of_their_own(
    rows: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any]
) -> None:
    model = classifier()
    round = _round(model, variant="S")
    args = FedLESAMConfig(**plain_sgd, max_steps=3, per_device_train_batch_size=8, fedlesam_variant="S")
    trainer = Groups(model, args, train_dataset=rows)
    trainer.begin_round(round)
    trainer.train()
    control, before = trainer.end_round().memory["control"], round.memory["control"]
    for name, param in model.named_parameters():
        rate = {"hidden.weight": RATE, "hidden.bias": 0.0}.get(name, RATE / 10)
        expected = before[name]
        if rate:
            move = param.detach() - round.received[name]
            expected = expected - round.broadcast["control"][name] - move / (3 * rate)
        torch.testing.assert_close(control[name], expected)


class Unused(nn.Module):
    """A part of it takes no part in the loss."""

    main_input_name = "pixel_values"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.idle = inner, nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.inner(pixel_values, labels)
        return found


def test_corrections_reach_parameters_without_a_gradient(
    rows: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any]
) -> None:
    """The correction is then the gradient, and the control stays what keeps it so."""
    model = Unused(classifier())
    round = _round(model, variant="S")
    given = _train(model, rows, plain_sgd, round)
    pull = LAMB * (round.broadcast["control"]["idle"] - round.memory["control"]["idle"])
    torch.testing.assert_close(model.idle.detach(), round.received["idle"] - 3 * RATE * pull)
    own, common = round.memory["control"]["idle"], round.broadcast["control"]["idle"]
    torch.testing.assert_close(given.memory["control"]["idle"], (1 - LAMB) * (own - common))
    plain = Unused(classifier())
    _train(plain, rows, plain_sgd, _round(plain))
    assert torch.equal(plain.idle, torch.ones_like(plain.idle))


def test_adamw_takes_the_correction_for_gradient(
    rows: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any], difference: Callable[..., float]
) -> None:
    model, hand = classifier(), classifier()
    adam = plain_sgd | {"optim": "adamw_torch", "learning_rate": 1e-3}
    _train(model, rows, adam, _round(model, variant="D", mu=MU), weight_decay=DECAY)
    by_hand, start = ByHand(hand, _round(hand, variant="D", mu=MU), variant="D"), _copy(hand)
    groups = [
        {"params": [p for p in hand.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in hand.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for batch in _batches(rows):
        weights = _copy(hand)
        by_hand.update(batch, rate=1.0)  # leaves w - g
        with torch.no_grad():
            for name, param in hand.named_parameters():
                param.grad = weights[name] - param
                param.copy_(weights[name])
        optimizer.step()
    assert difference(model, hand) < 1e-10
    assert start.keys() == _copy(hand).keys()


@dataclass
class SAMConfig(DISAMArguments, TrainingArguments):
    pass


class ProximalSAM(DISAMMixin, FederatedMixin, Trainer):
    pass


class SAMProximal(FederatedMixin, DISAMMixin, Trainer):
    pass


@pytest.mark.parametrize("kind", [ProximalSAM, SAMProximal])
def test_fedprox_over_sam(
    kind: type[Any],
    rows: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    """In either order the term is added once, where the weights were before SAM's second pass."""
    model, hand = classifier(accumulating=True), classifier()
    accumulating = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    args = SAMConfig(**plain_sgd, max_steps=3, disam_rho=RHO, disam_lambda=0.0, **accumulating)
    trainer = kind(model, args, train_dataset=rows)
    trainer.begin_round(_round(model, mu=MU))
    trainer.train()
    by_hand = ByHand(hand, _round(hand, mu=MU), rho=0.0)
    for batch in _batches(rows):
        loss = F.cross_entropy(hand(batch["pixel_values"])["logits"], batch["labels"])
        names, params = zip(*hand.named_parameters(), strict=True)
        grads = dict(zip(names, torch.autograd.grad(loss, params), strict=True))
        by_hand.eps = {name: RHO * grad / _norm(grads) for name, grad in grads.items()}
        by_hand.update(batch)
    assert difference(model, hand) < 1e-11


def test_updates_that_a_stream_leaves_unfinished(
    rows: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any], difference: Callable[..., float]
) -> None:
    """Three batches: an update of two, half of the next, which takes the first two again. One correction each."""
    model, hand = classifier(), classifier()
    args = FedLESAMConfig(
        **plain_sgd,
        max_steps=2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        fedlesam_rho=0.0,
        fedlesam_variant="D",
        fedlesam_lamb=LAMB,
    )
    trainer = FedLESAMTrainer(model, args, train_dataset=rows.to_iterable_dataset())
    trainer.begin_round(_round(model, variant="D", mu=MU))
    trainer.train()
    assert trainer.state.global_step == 2
    by_hand, batches = ByHand(hand, _round(hand, variant="D", mu=MU), variant="D", rho=0.0), _batches(rows)
    for parts in ([(0, 0.5), (1, 0.5)], [(2, 1.0), (0, 0.5), (1, 0.5)]):
        loss = torch.tensor(0.0)
        for number, share in parts:
            batch = batches[number]
            loss = loss + share * F.cross_entropy(hand(batch["pixel_values"])["logits"], batch["labels"])
        names, params = zip(*hand.named_parameters(), strict=True)
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for name, param, grad in zip(names, params, grads, strict=True):
                param.copy_(param - RATE * (grad + by_hand.added(name, param)))
    assert difference(model, hand) < 1e-12


@pytest.mark.parametrize("variant", ["S", "D"])
def test_a_loss_scaler(
    variant: str,
    rows: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    """Corrections are scaled as the gradients are; a step that the scaler leaves out counts for nothing."""
    model, hand = classifier(), classifier()
    round, calls = _round(model, variant=variant, mu=MU), []

    def overflow_in_the_second(grad: Tensor) -> Tensor:
        calls.append(grad)
        return grad * float("inf") if len(calls) == 2 else grad

    options = {"fedlesam_variant": variant, "fedlesam_lamb": LAMB, "fedlesam_rho": RHO}
    args = FedLESAMConfig(**plain_sgd, **options, max_steps=3, per_device_train_batch_size=8)
    trainer = FedLESAMTrainer(model, args, train_dataset=rows)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model.classifier.bias.register_hook(overflow_in_the_second)
    trainer.begin_round(round)
    trainer.train()
    assert len(calls) == 3 and trainer.accelerator.scaler.get_scale() == 512.0
    by_hand = ByHand(hand, _round(hand, variant=variant, mu=MU), variant=variant)
    first, _, third = _batches(rows)
    for batch in (first, third):
        by_hand.update(batch)
    assert difference(model, hand) < 1e-12
    control = trainer.end_round().memory["control"]
    for name, value in by_hand.control().items():
        torch.testing.assert_close(control[name], value, rtol=0, atol=1e-11)


def test_the_mixin_asks_for_its_arguments(
    rows: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any]
) -> None:
    assert issubclass(FedLESAMTrainer, FedLESAMMixin)
    with pytest.raises(ValueError, match="allowed is one with FedLESAMArguments mixed in, such as FedLESAMConfig"):
        FedLESAMTrainer(classifier(), TrainingArguments(**plain_sgd), train_dataset=rows)
