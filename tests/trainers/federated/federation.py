"""Federations in this process: Flower's messages, strategies and apps, without its transport."""

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from datasets import Dataset
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from hf_ext.trainers.federated.in_process import ProcessGrid

CLASSES = 3


class LocalGrid(ProcessGrid):
    """Flower's grid whose nodes are called at once, in an order and with ids that are never the same.

    Args:
        app: of the clients.
        num_clients: how many.
        faults: by client, what takes the place of its replies to `train`: a function of (reply, round) that returns a
            message or error, a list of them, or None for no reply in time.
    """

    def __init__(
        self,
        app: ClientApp,
        num_clients: int,
        faults: Mapping[int, Callable[[Message, int], Any]] | None = None,
        contexts: dict[int, Context] | None = None,
    ) -> None:
        self.app, self.faults = app, faults or {}
        self._ids = random.SystemRandom().sample(range(1, 2**62), num_clients)
        self.contexts = contexts if contexts is not None else {}
        self.nodes = {node: client for client, node in enumerate(self._ids)}
        for client in range(num_clients):
            self.contexts.setdefault(client, _context(client, num_clients))
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.bytes_sent: list[int] = []
        self.bytes_received: list[int] = []
        self._message_ids = itertools.count(1)

    def get_node_ids(self) -> Iterable[int]:
        nodes = list(self.nodes)
        random.SystemRandom().shuffle(nodes)
        return nodes

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies: list[Message] = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._message_ids))
            self.sent.append(message)
            self.bytes_sent.append(bytes_in(message))
            replies += self._reply(message)
        random.SystemRandom().shuffle(replies)
        self.received += replies
        self.bytes_received += map(bytes_in, replies)
        return replies

    def _reply(self, message: Message) -> list[Message]:
        client = self.nodes[message.metadata.dst_node_id]
        kind = message.metadata.message_type
        try:
            reply = self.app(message, self.contexts[client])
        except Exception as error:
            reply = Message(Error(2, str(error)), reply_to=message)
        if kind != "train" or client not in self.faults:
            return [reply]
        number = next(iter(message.content.config_records.values()))["server-round"]
        changed = self.faults[client](reply, number)
        replies = changed if isinstance(changed, list) else [] if changed is None else [changed]
        return [Message(one, reply_to=message) if isinstance(one, Error) else one for one in replies]


def bytes_in(message: Message) -> int:
    """Of the arrays in a message."""
    return (
        sum(record.count_bytes() for record in message.content.array_records.values()) if message.has_content() else 0
    )


def _context(client: int, num_clients: int) -> Context:
    config = {"partition-id": client, "num-partitions": num_clients}
    return Context(run_id=1, node_id=client, node_config=config, state=RecordDict(), run_config={})


def run_federation(
    server: ServerApp,
    client: ClientApp,
    num_clients: int,
    *,
    run_config: dict[str, Any] | None = None,
    **kwargs: Any,
) -> LocalGrid:
    """Run both apps; `server.result` and `server.trainer` are then what came of it."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # who sends messages; Flower's engines say
    grid = LocalGrid(client, num_clients, **kwargs)
    server(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config or {}))
    return grid


def rows(count: int, seed: int) -> Dataset:
    """Pictures of 4 x 4 with labels that can be learned."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    pixels = torch.randn(count, 1, 4, 4, generator=generator) + labels[:, None, None, None]
    return Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": labels.tolist()}).with_format("torch")


def tiny_vit(seed: int = 0) -> ViTForImageClassification:
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=4,
        patch_size=2,
        num_channels=1,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTForImageClassification(config)


def factory(
    kind: type = Trainer,
    arguments: type = TrainingArguments,
    *,
    output_dir: Any,
    sizes: Iterable[int] = (8, 12, 16, 20),
    make_model: Callable[[], Any] = tiny_vit,
    evaluate: bool = True,
    prepare: Callable[[Dataset], Dataset] = lambda data: data,
    trainer_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Callable[[Context], Any]:
    """From a node's context to a Trainer of its rows; of the server to one of rows that no client has."""
    own = [prepare(rows(size, seed)) for seed, size in enumerate(sizes)]
    held_out = prepare(rows(24, 1000))
    defaults = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }

    def make(context: Context) -> Any:
        client = context.node_config.get("partition-id")
        return kind(
            make_model(),
            arguments(output_dir=str(output_dir), **(defaults | options)),
            train_dataset=own[0 if client is None else client],
            eval_dataset=held_out if evaluate else None,
            **(trainer_kwargs or {}),
        )

    return make


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
