"""What the demos of federated methods share: federations of the embedded digits, in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import DatasetDict
from torch import nn
from transformers import ConvNextForImageClassification, TrainerCallback

from hf_ext import _small_models
from hf_ext._runs import quiet
from hf_ext.commands.demo import DemoRun
from hf_ext.commands.loading import accuracy
from hf_ext.data import Partition
from hf_ext.trainers.federated import client_app, server_app, simulate

DATASET = "digits"
CLIENTS, PER_ROUND, LOCAL_STEPS = 20, 8, 10
LEARNING_RATE = 0.1
SETTING = (
    f"{CLIENTS} clients, {PER_ROUND} of which train in each round, {LOCAL_STEPS} updates of plain SGD each"  # in words
)


def rounds_of(steps: int) -> int:
    """How many rounds make so many updates of a client that takes part in all."""
    return max(1, steps // LOCAL_STEPS)


@dataclass(frozen=True)
class DemoFederation:
    """The clients of one seed.

    Args:
        run: of the demo.
        data: `train`, which they share, and `test`.
        divided: who has which rows.
        strategy: a class of Flower's, the server's.
    """

    run: DemoRun
    data: DatasetDict
    divided: Partition
    strategy: Callable[..., Any]

    def network(self) -> ConvNextForImageClassification:
        """The small network that all systems begin with."""
        torch.manual_seed(self.run.seed)
        names = _small_models.class_names(self.data["train"].features["labels"].names)
        return ConvNextForImageClassification(_small_models.convnext(**names))

    def train(
        self, name: str, trainer_class: Any, config_class: Any, *, model: Callable[[], nn.Module], **options: Any
    ) -> Any:
        """Train a system.

        Args:
            name: of it.
            trainer_class, config_class: of the clients.
            model: makes what they train.
            options: of their config.

        Returns:
            The server's Trainer, with the global model and the test rows to evaluate on.
        """
        usual = {"optim": "sgd", "lr_scheduler_type": "constant", "per_device_train_batch_size": 16}
        counts = {"steps": LOCAL_STEPS, "logging_steps": LOCAL_STEPS}
        args = self.run.arguments(config_class, LEARNING_RATE, **{**usual, **counts, **options})

        def make(context: Any) -> Any:
            number = context.node_config.get("partition-id", 0)  # the server's trains nothing
            rows = self.divided.client(self.data["train"], number)
            return quiet(trainer_class(model=model(), args=args, train_dataset=rows, compute_metrics=accuracy))

        def with_bar(context: Any) -> Any:
            trainer = make(context)
            trainer.add_callback(bar)
            return trainer

        rounds = rounds_of(self.run.steps)
        bar = _ClientsBar(self.run, name, rounds * PER_ROUND)
        few = {"min_train_nodes": 1, "min_available_nodes": CLIENTS}
        server = server_app(
            lambda _: self.strategy(fraction_train=PER_ROUND / CLIENTS, fraction_evaluate=0.0, **few),
            make,
            num_rounds=rounds,
        )
        simulate(server, client_app(with_bar), num_clients=CLIENTS, in_process=True)
        bar.remove()
        server.trainer.eval_dataset = self.data["test"]
        return server.trainer


class _ClientsBar(TrainerCallback):
    """Shows in the demo's display how many clients have trained."""

    def __init__(self, run: DemoRun, name: str, total: int) -> None:
        self.bars, self.task = run.bars, run.bars.add_task(f"seed {run.seed}: {name}", total=total)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bars.advance(self.task)

    def remove(self) -> None:
        self.bars.remove_task(self.task)
        self.bars.advance(self.bars.task_ids[0])
