"""A Flower ClientApp around any Trainer."""

import copy
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import enable_full_determinism, set_seed

from hf_ext._garbage import spare
from hf_ext.trainers.federated.flower import (
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Context,
    Error,
    ErrorCode,
    Message,
    MetricRecord,
    RecordDict,
)
from hf_ext.trainers.federated.frozen import check_frozen
from hf_ext.trainers.federated.memory import ClientMemory
from hf_ext.trainers.federated.records import from_record, to_record
from hf_ext.trainers.federated.rounds import Contribution, FederatedMixin, Round
from hf_ext.trainers.federated.travelling import load_tensors, travelling_tensors

logger = logging.getLogger(__name__)

TrainerFactory = Callable[[Context], Any]

#: the record beside Flower's own that says who replies to what
PASSPORT = "federated"
#: what a server's ConfigRecord names if its clients cannot do without it: a class that their Trainers derive from
NEEDS = "needs"
_LONGEST_REASON = 500
#: mods of Flower's that change a model's arrays, and refuse a reply with others in words that reach nobody
_OF_THE_MODEL = {"LocalDpMod", "adaptiveclipping_mod", "fixedclipping_mod"}
#: of Trainer's metrics, those that tell of the machine
_OF_THE_MACHINE = ("_runtime", "_per_second", "_preparation_time", "_flos", "epoch")


def client_app(
    trainer_factory: TrainerFactory,
    *,
    state_dir: str | os.PathLike[str] | None = None,
    mods: Sequence[Any] | None = None,
) -> ClientApp:
    """A ClientApp that trains and evaluates what a function makes.

    For every message the function makes a new Trainer, so optimizer and schedule are new in every round; the global
    model is loaded into it, and what it has trained is sent back. Data order and dropout depend on `args.seed`, the
    round and the client, and are those of the plain Trainer in round 1 for client 0. `args.output_dir` gets a folder
    for each client. The client's number is `partition-id` of its node's config, which a simulation sets, and
    `flower-supernode --node-config "partition-id=0"`.

    What the server's ConfigRecord says: `learning-rate-decay` multiplies the learning rate by itself in every round
    after the first; `proximal-mu`, which Flower's FedProx sends, needs a Trainer with a `FederatedMixin`.

    Noise of Flower's mods for differential privacy does not follow from these seeds, which the server knows.

    A round that fails is answered with an error in one line, and the server goes on with the other clients.

    Args:
        trainer_factory: from the node's `Context` to a Trainer (of transformers, TRL, this package or one's own).
        state_dir: where clients keep what they remember between rounds, so that it outlives the run; by default
            `state-dir` of the run's config, and without either Flower's `context.state`.
        mods: of Flower, around training (clipping, noise, sizes of messages).
    """
    app = ClientApp()
    client = _Client(trainer_factory, state_dir, [_name_of(mod) for mod in mods or ()])

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({PASSPORT: ConfigRecord(_who(context))}), reply_to=message)

    @app.train(mods=list(mods or ()))
    def train(message: Message, context: Context) -> Message:
        return _answer(client.train, message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answer(client.evaluate, message, context)

    return app


def client_number(context: Context) -> int:
    """The number of a client among all, from 0; of a node without `partition-id`, its id at Flower's."""
    number = context.node_config.get("partition-id", context.node_id)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"partition-id: found {number!r} in the node's config, allowed are integers >= 0")
    return number


def passport_of(content: RecordDict) -> Mapping[str, Any]:
    """Who a message is from, and what it belongs to; empty if it does not say."""
    found: Any = content.config_records.get(PASSPORT)
    return {} if found is None else found


def _who(context: Context) -> dict[str, Any]:
    clients = context.node_config.get("num-partitions")
    if clients is None:
        return {"partition-id": client_number(context)}
    if isinstance(clients, bool) or not isinstance(clients, int) or clients < 1:
        raise ValueError(f"num-partitions: found {clients!r} in the node's config, allowed are integers >= 1")
    return {"partition-id": client_number(context), "num-partitions": clients}


def _answer(work: Callable[[Message, Context], RecordDict], message: Message, context: Context) -> Message:
    try:
        with private_noise():
            content = work(message, context)
        return Message(content, reply_to=message)
    except Exception as error:
        logger.exception("this client's part of the round failed")
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:_LONGEST_REASON]
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


@contextmanager
def private_noise() -> Iterator[None]:
    """Leave numpy's generator as it was before Trainers have seeded it.

    Flower draws noise for differential privacy from it, which whoever knows the seeds could take away again.
    """
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


@cache
def _spare_the_collector() -> None:
    """Once in a process: a simulation makes thousands of short trainings."""
    spare()


class _Client:
    def __init__(
        self, trainer_factory: TrainerFactory, state_dir: str | os.PathLike[str] | None, mods: list[str]
    ) -> None:
        self._trainer_factory, self._state_dir, self._mods = trainer_factory, state_dir, mods

    def train(self, message: Message, context: Context) -> RecordDict:
        _spare_the_collector()
        task = _Task(message)
        trainer, received, client = self._prepare(task, context)
        taken = task.config.get("taken-round")
        committed = getattr(trainer, "committed", ())
        federation = str(task.config.get("federation") or f"run {context.run_id}")
        folder: Any = self._state_dir or context.run_config.get("state-dir") or None
        memory = ClientMemory(context, folder, client, federation)
        before = task.number or 1
        round = Round(
            number=before,
            client=client,
            config=dict(task.config),
            received=received,
            broadcast=task.broadcast(trainer),
            memory=memory.recall(before, taken, committed),
        )
        contribution = _run(trainer, round)
        _check_mods(self._mods, {*contribution.sent, *set(contribution.memory).intersection(committed)})
        if contribution.memory:
            memory.keep(before, taken, dict(contribution.memory))
        own = travelling_tensors(trainer.model)
        passport = _who(context) | {
            "server-round": before,
            "federation": task.config.get("federation", ""),
        }
        buffers = [name for name, tensor in own.items() if not isinstance(tensor, torch.nn.Parameter)]
        if buffers:
            passport["buffers"] = buffers
        reply = RecordDict({task.arrays_key: to_record({name: own[name] for name in received})})
        reply["metrics"] = _metrics(trainer, contribution)
        reply[PASSPORT] = ConfigRecord(passport)
        for name, tensors in contribution.sent.items():
            reply[name] = to_record(tensors)
        return reply

    def evaluate(self, message: Message, context: Context) -> RecordDict:
        task = _Task(message)
        trainer, received, client = self._prepare(task, context)
        if trainer.eval_dataset is None:
            raise ValueError(
                "eval_dataset: found none, allowed are some rows; fraction_evaluate=0 asks for no metrics"
            )
        if isinstance(trainer, FederatedMixin):
            trainer.begin_round(Round(task.number or 1, client, dict(task.config), received))
        numbers = evaluated(trainer)
        rows = _rows_in(trainer.eval_dataset)
        return RecordDict(
            {"metrics": MetricRecord({"num-examples": rows, **numbers}), PASSPORT: ConfigRecord(_who(context))}
        )

    def _prepare(self, task: "_Task", context: Context) -> tuple[Any, dict[str, Tensor], int]:
        client = client_number(context)
        trainer = self._trainer_factory(context)
        _check(trainer)
        trainer.args = args = copy.copy(trainer.args)
        moved = _moved(task.number, client)
        args.seed = (args.seed + moved) % 2**32
        if args.data_seed is not None:
            args.data_seed = (args.data_seed + moved) % 2**32
            trainer.accelerator.dataloader_config.data_seed = args.data_seed
        if getattr(trainer, "card", None) is not None:
            trainer.remove_callback(trainer.card)  # the card is the server's
        args.output_dir = os.path.join(args.output_dir, f"client-{client}")
        _decay(trainer, task)
        check_frozen(trainer.model, task.config)
        own = travelling_tensors(trainer.model)
        received = from_record(task.arrays, own, "the global model")
        load_tensors(trainer.model, received)
        (enable_full_determinism if args.full_determinism else set_seed)(args.seed)
        return trainer, received, client


class _Task:
    """What a message asks for."""

    def __init__(self, message: Message) -> None:
        content = message.content
        self._records: dict[str, ArrayRecord] = dict(content.array_records)
        self.arrays_key = "arrays" if "arrays" in self._records else next(iter(self._records), "arrays")
        if self.arrays_key not in self._records:
            raise ValueError("message: found no arrays, allowed is a global model")
        self.arrays = self._records.pop(self.arrays_key)
        self.config: Mapping[str, Any] = next(iter(content.config_records.values()), {})
        number = self.config.get("server-round")
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
            raise ValueError(f"server-round: found {number!r}, allowed are integers >= 0")
        self.number: int | None = number

    def broadcast(self, trainer: Any) -> dict[str, dict[str, Tensor]]:
        """Further records, of the trainable parameters."""
        own = travelling_tensors(trainer.model) if self._records else {}
        like = {name: tensor for name, tensor in own.items() if isinstance(tensor, torch.nn.Parameter)}
        return {key: from_record(record, like, key) for key, record in self._records.items()}


def _name_of(mod: Any) -> str:
    return str(getattr(mod, "__name__", type(mod).__name__))


def _check_mods(mods: list[str], beside: set[str]) -> None:
    """Refuse what changes a model on its way where client and server reckon with how it was trained."""
    found = sorted(_OF_THE_MODEL.intersection(mods))
    if found and beside:
        names, kept = ", ".join(found), ", ".join(sorted(beside))
        raise ValueError(f"mods: found {names}, allowed are none that change a model that goes with {kept}")


def _check(trainer: Any) -> None:
    if not all(hasattr(trainer, name) for name in ("train", "model", "args", "state")):
        raise ValueError(
            f"trainer_factory: found a {type(trainer).__name__}, allowed are functions that make Trainers"
        )
    if trainer.state.global_step:
        raise ValueError("trainer_factory: found a Trainer that has trained already, allowed is a new one every time")
    if trainer.args.push_to_hub:
        raise ValueError("push_to_hub: found True at a client, allowed is False: the server pushes (server_app)")


def _moved(number: int | None, client: int) -> int:
    """How far a client's seeds are moved in a round: 0 in round 1 for client 0, so that one client is no other run."""
    return 1_000_003 * max((number or 1) - 1, 0) + 7_919 * client


def _decay(trainer: Any, task: _Task) -> None:
    decay = task.config.get("learning-rate-decay")
    if decay is None:
        return
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise ValueError(f"learning-rate-decay: found {decay!r}, allowed are numbers in (0, 1]")
    if decay != 1 and trainer.optimizer is not None:
        raise ValueError("learning-rate-decay: found an optimizer handed to the Trainer, allowed is none with that")
    trainer.args.learning_rate *= decay ** ((task.number or 1) - 1)


def _run(trainer: Any, round: Round) -> Contribution:
    needs = round.config.get(NEEDS)
    if needs and needs not in {kind.__name__ for kind in type(trainer).__mro__}:
        raise ValueError(
            f"trainer_factory: found a {type(trainer).__name__}, allowed with this server are Trainers with {needs}"
        )
    if isinstance(trainer, FederatedMixin):
        trainer.begin_round(round)
        trainer.train()
        return trainer.end_round()
    if round.config.get("proximal-mu"):
        raise ValueError(
            f"proximal-mu: found {round.config['proximal-mu']} for a {type(trainer).__name__}, allowed are Trainers "
            "with a FederatedMixin in front: class MyTrainer(FederatedMixin, Trainer)"
        )
    if round.broadcast:
        names = ", ".join(sorted(round.broadcast))
        raise ValueError(
            f"{names}: found for a {type(trainer).__name__}, allowed are Trainers that know what it is for"
        )
    trainer.train()
    return Contribution()


def _metrics(trainer: Any, contribution: Contribution) -> MetricRecord:
    metrics = MetricRecord({"num-examples": _rows(trainer)})
    for line in trainer.state.log_history:
        if "train_loss" in line:
            metrics["train_loss"] = float(line["train_loss"])
    for name, value in contribution.metrics.items():
        metrics[name] = float(value)
    return metrics


def _rows(trainer: Any) -> int:
    """Rows of the client's data; of a stream those that it has trained on."""
    if hasattr(trainer.train_dataset, "__len__"):
        return len(trainer.train_dataset)
    return int(trainer.state.global_step * trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps)


def _rows_in(data: Any) -> int:
    """Rows of data to evaluate on; those of a stream are counted."""
    if isinstance(data, dict):  # of several sets, each by its name
        return sum(map(_rows_in, data.values()))
    return len(data) if hasattr(data, "__len__") else sum(1 for _ in data)


def evaluated(trainer: Any) -> dict[str, float]:
    """Metrics of a Trainer's own data, without those that tell of the machine."""
    metrics = trainer.evaluate()
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not name.endswith(_OF_THE_MACHINE) and math.isfinite(value)
    }
