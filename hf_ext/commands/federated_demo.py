"""What the demos of federated methods share: federations of the embedded digits, in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import DatasetDict
from torch import nn
from transformers import TrainerCallback

from hf_ext._runs import quiet
from hf_ext.commands.demo import DemoRun
from hf_ext.commands.loading import accuracy
from hf_ext.data import Partition
from hf_ext.trainers.federated import client_app, server_app, simulate

DATASET = "digits"
CLIENTS, PER_ROUND, LOCAL_STEPS = 20, 8, 10


@dataclass(frozen=True)
class DemoFederation:
    """The clients of one seed.

    Args:
        run: of the demo.
        data: `train`, which they share, and `test`.
        divided: who has which rows.
        learning_rate: of the clients.
    """

    run: DemoRun
    data: DatasetDict
    divided: Partition
    learning_rate: float

    @property
    def rounds(self) -> int:
        return rounds_of(self.run.steps)

    def train(
        self, name: str, kinds: tuple[Any, Any], model: Callable[[], nn.Module], strategy: Any, **options: Any
    ) -> Any:
        """Train a system.

        Args:
            name: of it.
            kinds: classes of Trainer and arguments.
            model: makes the one that all systems begin with.
            strategy: a class of them.
            options: arguments of the clients.

        Returns:
            The server's Trainer, with the global model.
        """
        trainer_class, config_class = kinds
        common = {"steps": LOCAL_STEPS, "logging_steps": LOCAL_STEPS, "optim": "sgd", "lr_scheduler_type": "constant"}

        def make(context: Any) -> Any:
            number = context.node_config.get("partition-id")
            args = self.run.arguments(config_class, self.learning_rate, **common | {"per_device_train_batch_size": 16} | options)
            rows = self.divided.client(self.data["train"], 0 if number is None else number)
            return quiet(trainer_class(model=model(), args=args, train_dataset=rows, compute_metrics=accuracy))

        server = server_app(
            lambda _: strategy(fraction_train=PER_ROUND / CLIENTS, fraction_evaluate=0.0), make, num_rounds=self.rounds
        )
        simulate(server, client_app(make), num_clients=CLIENTS, in_process=True)
        server.trainer.eval_dataset = self.data["test"]
        return server.trainer


def rounds_of(steps: int) -> int:
    """How many rounds make so many steps of a client that takes part in all."""
    return max(1, steps // LOCAL_STEPS)
