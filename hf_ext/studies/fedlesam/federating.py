"""One federation of a study, from Flower's apps to numbers: how it is trained, and what is read off it."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext._runs import arguments, quiet
from hf_ext.studies.fedlesam.data import Federation, Part
from hf_ext.studies.training import Rows
from hf_ext.trainers.federated import client_app, server_app, simulate
from hf_ext.trainers.federated.flower import FLOWER_LOGGER, Context, Strategy
from hf_ext.trainers.federated.ledger import SERVER

ACTIVE = 0.2  # share of the clients that train in a round
BATCH = 32
DECAY = 0.998  # of the learning rate, a round
WEIGHT_DECAY, CLIPPING = 1e-3, 10.0
LAST = 5  # rounds at the end over which accuracies are averaged: with few active clients they jump
WINDOW = 5  # rounds whose mean has to reach a target


@dataclass(frozen=True)
class Setting:
    """How all clients train.

    Args:
        rounds: of the federation.
        epochs: of a client in a round.
        learning_rate: in the first round.
    """

    rounds: int
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class Client:
    """What the clients of a system are.

    Args:
        trainer: kind of Trainer.
        arguments: kind of its arguments.
        options: further arguments.
        further: what the Trainer takes besides, given the client's rows.
    """

    trainer: type[Trainer] = Trainer
    arguments: type[TrainingArguments] = TrainingArguments
    options: Mapping[str, Any] = field(default_factory=dict)
    further: Callable[[Part], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Trained:
    """What came of a federation.

    Args:
        model: the global one, in evaluation mode.
        test, validation: its accuracy after each round, `[rounds]`.
    """

    model: nn.Module
    test: NDArray[np.float64]
    validation: NDArray[np.float64]

    @property
    def final(self) -> dict[str, float]:
        """Accuracies, means over the last rounds."""
        return {"test": float(self.test[-LAST:].mean()), "validation": float(self.validation[-LAST:].mean())}

    def rounds_to(self, target: float) -> float:
        """The round by which the last ones' mean accuracy first reaches a target; all of them if it never does."""
        window = min(WINDOW, len(self.test))
        means = np.convolve(self.test, np.ones(window) / window, mode="valid")
        reached = np.flatnonzero(means >= target)
        return float(reached[0] + window if len(reached) else len(self.test))


def train(
    federation: Federation,
    make_model: Callable[[], nn.Module],
    client: Client,
    make_strategy: Callable[..., Strategy],
    setting: Setting,
    seed: int,
) -> Trained | None:
    """Run a federation; None if training diverged at a client.

    Args:
        federation: who has which rows.
        make_model: called for the server and once for all clients, which are loaded with what they receive anyway.
        client: what the clients are.
        make_strategy: takes Flower's options.
        setting: how they train.
        seed: of the sampling of clients and of their batches.
    """
    make_trainer = _Factory(federation, make_model, client, setting, seed)
    server = server_app(
        lambda context: make_strategy(fraction_train=ACTIVE, fraction_evaluate=0.0),
        make_trainer,
        num_rounds=setting.rounds,
        train_config={"learning-rate-decay": DECAY},
    )
    with _quiet():
        simulate(server, client_app(make_trainer), num_clients=len(federation), in_process=True)
    assert server.ledger is not None
    if server.ledger.left_out:
        _refuse_faults(server.ledger.left_out)
        return None
    history = [server.ledger.history[SERVER][number] for number in range(1, setting.rounds + 1)]
    test, validation = (np.array([one[f"eval_{name}"] for one in history]) for name in ("test", "validation"))
    return Trained(server.trainer.model.eval(), test, validation)


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower warns of every federation whose clients do not evaluate."""
    level = FLOWER_LOGGER.level
    FLOWER_LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        FLOWER_LOGGER.setLevel(level)


def train_client(
    model: nn.Module, number: int, federation: Federation, client: Client, setting: Setting, seed: int
) -> None:
    """Train a model at one client as in a round, for a look at what comes of it there."""
    make_trainer = _Factory(federation, lambda: model, client, setting, seed)
    make_trainer.at(number).train()


def _refuse_faults(left_out: Sequence[str]) -> None:
    """Raises RuntimeError for replies that were left out for anything but weights that are not finite."""
    for line in left_out:
        if "not finite" not in line:
            raise RuntimeError(f"a client's reply was left out: {line}")


class _Factory:
    """From a node's context to its Trainer."""

    def __init__(
        self,
        federation: Federation,
        make_model: Callable[[], nn.Module],
        client: Client,
        setting: Setting,
        seed: int,
    ) -> None:
        self._federation, self._make_model, self._client = federation, make_model, client
        self._setting, self._seed = setting, seed
        self._model = make_model()

    def __call__(self, context: Context) -> Trainer:
        number = context.node_config.get("partition-id")
        if number is None:
            validation, test = self._federation.validation, self._federation.test
            both = Rows.of(
                pixel_values=torch.cat([validation.pixel_values, test.pixel_values]),
                labels=torch.cat([validation.labels, test.labels]),
            )
            metrics = _accuracies(len(validation))
            trainer = Trainer(self._make_model(), self._arguments(TrainingArguments), eval_dataset=both)
            trainer.compute_metrics = metrics
            return quiet(trainer)
        return self.at(int(number))

    def at(self, number: int) -> Trainer:
        """A client's Trainer."""
        rows = self._federation.train_of(number)
        args = self._arguments(self._client.arguments, **self._client.options)
        further = self._client.further(rows) if self._client.further else {}
        return quiet(self._client.trainer(self._model, args, train_dataset=rows.rows(), **further))

    def _arguments(self, kind: type[TrainingArguments], **options: Any) -> TrainingArguments:
        return arguments(
            kind,
            steps=-1,
            num_train_epochs=self._setting.epochs,
            learning_rate=self._setting.learning_rate,
            seed=self._seed,
            optim="sgd",
            lr_scheduler_type="constant",
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIPPING,
            per_device_train_batch_size=BATCH,
            **options,
        )


def _accuracies(validation: int) -> Callable[[Any], dict[str, float]]:
    def compute(prediction: Any) -> dict[str, float]:
        right = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"validation": right[:validation].mean(), "test": right[validation:].mean()}

    return compute


# ------------------------------------------------------------------------------------------------ scores
@torch.no_grad()
def logits_of(model: nn.Module, part: Part) -> Tensor:
    """Logits of rows, `[N, C]`, on the CPU."""
    device = next(model.parameters()).device
    batches = part.pixel_values.split(512)
    return torch.cat([model(pixel_values=rows.to(device)).logits.cpu() for rows in batches])


def personal_accuracy(federation: Federation, logits: Callable[[int, Tensor], Tensor], model: nn.Module) -> float:
    """Mean over clients of the accuracy on their own test rows.

    Args:
        federation: of the clients.
        logits: what a client, by number, makes of the global logits `[N, C]`.
        model: the global one.
    """
    held = logits_of(model, federation.held)
    scores = []
    for client, rows in enumerate(federation.testing.indices):
        chosen = torch.tensor(rows)
        predicted = logits(client, held[chosen]).argmax(-1)
        scores.append(float((predicted == federation.held.labels[chosen]).float().mean()))
    return float(np.mean(scores))
