"""What goes wrong in a federation, and what becomes of the model."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation import LocalGrid, assert_same, factory, run_federation, weights
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod, arrays_size_mod, fixedclipping_mod, message_size_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
)

from hf_ext.trainers.federated import GuardedMixin, client_app, guarded, server_app

Fault = Callable[[Message, int], Any]
BAD = 2


def all_of_them(context: Context) -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=1)


def run(tmp_path: Path, faults: dict[int, Fault] | None = None, strategy: Any = all_of_them, **kwargs: Any) -> Any:
    clients, rounds, mods = kwargs.pop("clients", 4), kwargs.pop("rounds", 2), kwargs.pop("mods", None)
    make = factory(output_dir=tmp_path, **kwargs)
    server = server_app(strategy, make, num_rounds=rounds)
    server.grid = run_federation(server, client_app(make, mods=mods), clients, faults=faults)
    return server


def changed(**arrays: Any) -> Fault:
    """Replies in which some arrays are others; None takes one away."""

    def fault(reply: Message, number: int) -> Message:
        values = {**reply.content["arrays"], **{name.replace("__", "."): value for name, value in arrays.items()}}
        reply.content["arrays"] = ArrayRecord({name: value for name, value in values.items() if value is not None})
        return reply

    return fault


def with_metrics(**metrics: Any) -> Fault:
    def fault(reply: Message, number: int) -> Message:
        values = {**reply.content["metrics"], **{name.replace("_", "-", 1): value for name, value in metrics.items()}}
        reply.content["metrics"] = MetricRecord({name: value for name, value in values.items() if value is not None})
        return reply

    return fault


def raises(reply: Message, number: int) -> Error:
    return Error(2, "RuntimeError: out of memory")


def hangs(reply: Message, number: int) -> None:
    return None


def twice(reply: Message, number: int) -> list[Message]:
    return [reply, reply]


def of_an_old_model(reply: Message, number: int) -> Message:
    reply.content["federated"]["server-round"] = number - 1
    return reply


def of_another_federation(reply: Message, number: int) -> Message:
    reply.content["federated"]["federation"] = "another"
    return reply


def with_further_arrays(reply: Message, number: int) -> Message:
    reply.content["more"] = ArrayRecord({"x": Array(np.zeros(3))})
    return reply


def without_arrays(reply: Message, number: int) -> Message:
    del reply.content["arrays"]
    return reply


def without_metrics(reply: Message, number: int) -> Message:
    del reply.content["metrics"]
    return reply


BIAS = "classifier__bias"


def bias(*values: float) -> dict[str, Any]:
    return {BIAS: Array(np.array(values, dtype="float32"))}


FAULTS: dict[str, tuple[Fault, str]] = {
    "raises": (raises, "found an error (RuntimeError: out of memory)"),
    "hangs": (hangs, "client 2 has not replied in time"),
    "NaN": (changed(**bias(0, math.nan, 0)), "tensor 'classifier.bias' with values that are not finite"),
    "infinite": (changed(**bias(0, math.inf, 0)), "tensor 'classifier.bias' with values that are not finite"),
    "shape": (changed(**bias(0, 0)), "tensor 'classifier.bias' of shape 2, allowed is 3"),
    "dtype": (changed(**{BIAS: Array(np.zeros(3))}), "tensor 'classifier.bias' of float64, allowed is float32"),
    "missing": (changed(**{BIAS: None}), "no tensor 'classifier.bias'"),
    "extra": (changed(more=Array(np.zeros(3))), "an unknown tensor 'more'"),
    "further record": (with_further_arrays, "found 2 records of a model's arrays, allowed is one"),
    "no arrays": (without_arrays, "found 0 records of a model's arrays, allowed is one"),
    "no metrics": (without_metrics, "found 0 records of metrics, allowed is one"),
    "no examples": (with_metrics(num_examples=None), "num-examples: found nothing"),
    "0 examples": (with_metrics(num_examples=0), "num-examples: found 0"),
    "negative examples": (with_metrics(num_examples=-5), "num-examples: found -5"),
    "absurd examples": (with_metrics(num_examples=10**15), "num-examples: found 1000000000000000"),
    "relatively absurd examples": (with_metrics(num_examples=10**9), "times the median of the others"),
    "NaN examples": (with_metrics(num_examples=math.nan), "num-examples: found nan"),
    "many examples": (with_metrics(num_examples=[1, 2]), "num-examples: found [1, 2]"),
    "NaN loss": (with_metrics(train_loss=math.nan), "train-loss: found nan, allowed are finite numbers"),
    "old model": (of_an_old_model, "server-round: found"),
    "another federation": (of_another_federation, "federation: found 'another'"),
}


@pytest.fixture(scope="module")
def without_the_bad_one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The federation in which one client's replies never come."""
    return weights(run(tmp_path_factory.mktemp("good"), {BAD: hangs}).trainer)


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_reply_is_left_out_by_name_and_reason(tmp_path: Path, name: str, without_the_bad_one: Any) -> None:
    fault, reason = FAULTS[name]
    server = run(tmp_path, {BAD: fault})
    assert [server.ledger.participants[number] for number in (1, 2)] == [[0, 1, 3]] * 2
    assert len(server.ledger.left_out) == 2
    for number, line in enumerate(server.ledger.left_out, 1):
        assert line.startswith(f"round {number}: ") and f"client {BAD}" in line and reason in line
    assert_same(weights(server.trainer), without_the_bad_one)


def test_the_second_reply_of_a_client_is_left_out(tmp_path: Path) -> None:
    server = run(tmp_path, {BAD: twice})
    assert_same(weights(server.trainer), weights(run(tmp_path).trainer))
    assert server.ledger.left_out == [
        f"round {number}: the reply of client 2 is left out: found a second one, allowed is one" for number in (1, 2)
    ]


@pytest.mark.parametrize("fault", [raises, hangs, changed(**bias(0, math.nan, 0))])
def test_if_all_clients_fail_the_model_stays(tmp_path: Path, fault: Fault) -> None:
    before = weights(factory(output_dir=tmp_path)(Context(1, 1, {}, RecordDict(), {})))
    server = run(tmp_path, dict.fromkeys(range(4), fault))
    assert_same(weights(server.trainer), before)
    assert len(server.ledger.left_out) == 8 and not any(server.ledger.participants.values())


def test_a_round_without_replies_is_no_end(tmp_path: Path) -> None:
    def in_round_1(reply: Message, number: int) -> Message | None:
        return None if number == 1 else reply

    server = run(tmp_path, dict.fromkeys(range(4), in_round_1))
    assert server.ledger.participants == {2: [0, 1, 2, 3]}


def test_metrics_that_not_all_have_are_left_out(tmp_path: Path) -> None:
    server = run(tmp_path, {0: with_metrics(own_metric=1.0), 1: with_metrics(train_loss=[1.0, 2.0])})
    assert server.ledger.participants[2] == [0, 1, 2, 3]
    assert set(server.ledger.history["train"][2]) == {"train_loss"}


def poisoned(reply: Message, number: int) -> Message:
    arrays = {name: Array(array.numpy() * -100) for name, array in reply.content["arrays"].items()}
    reply.content["arrays"] = ArrayRecord(arrays)
    return reply


def distance(first: Any, second: Any) -> float:
    return float(sum((a - b).norm() ** 2 for a, b in zip(first.values(), second.values(), strict=True)) ** 0.5)


ROBUST: dict[str, Callable[[Context], Any]] = {
    "Krum": lambda _: Krum(num_malicious_nodes=1, fraction_evaluate=0.0),
    "median": lambda _: FedMedian(fraction_evaluate=0.0),
    "trimmed mean": lambda _: FedTrimmedAvg(beta=0.26, fraction_evaluate=0.0),
}


@pytest.mark.parametrize("name", ROBUST)
def test_a_poisoned_update_fails_against_a_robust_strategy(tmp_path: Path, name: str) -> None:
    honest = weights(run(tmp_path, strategy=ROBUST[name]).trainer)
    robust = weights(run(tmp_path, {BAD: poisoned}, strategy=ROBUST[name]).trainer)
    naive = weights(run(tmp_path, {BAD: poisoned}).trainer)
    assert distance(robust, honest) < 1 < 10 < distance(naive, honest)


class Overflowing(FedAvg):
    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        name = next(iter(arrays))
        arrays[name] = Array(np.full(arrays[name].shape, np.inf, dtype="float32"))
        return arrays, metrics


def test_an_aggregate_that_is_not_finite_is_no_model(tmp_path: Path) -> None:
    before = weights(factory(output_dir=tmp_path)(Context(1, 1, {}, RecordDict(), {})))
    server = run(tmp_path, strategy=lambda _: Overflowing(fraction_evaluate=0.0))
    assert_same(weights(server.trainer), before)
    assert server.ledger.participants == {}
    assert "the global model stays as it was" in server.ledger.left_out[0]


class Coming(LocalGrid):
    """A federation whose last client comes in the second round and whose first leaves after it."""

    def get_node_ids(self) -> list[int]:
        trained = sum(message.metadata.message_type == "train" for message in self.sent)
        ids = sorted(self.nodes, key=self.nodes.__getitem__)
        return ids[:-1] if not trained else ids if trained < 7 else ids[1:]


def test_clients_may_come_late_and_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import federation

    monkeypatch.setattr(federation, "LocalGrid", Coming)
    server = run(tmp_path, rounds=3)
    assert server.ledger.participants == {1: [0, 1, 2], 2: [0, 1, 2, 3], 3: [1, 2, 3]}
    assert server.ledger.left_out == []


class HandWritten(GuardedMixin, FedAvg):
    pass


def test_a_guard_is_put_around_what_has_none() -> None:
    own, flowers = HandWritten(seed=5), FedAvg(fraction_train=0.25)
    assert guarded(own, seed=7) is own and own.seed == 5
    around = guarded(flowers, seed=7)
    assert around.seed == 7 and around.fraction_train == 0.25
    with pytest.raises(ValueError, match=r"max_examples_ratio: found 0.5, allowed are numbers >= 1"):
        HandWritten(max_examples_ratio=0.5)


# ---------------------------------------------------------------------------------------------- Flower's own parts
SIZES = (12, 12, 12, 12)


def test_clipping_at_the_server_works_within(tmp_path: Path) -> None:
    def private(context: Context) -> Any:
        return DifferentialPrivacyServerSideFixedClipping(
            FedAvg(fraction_evaluate=0.0), noise_multiplier=0.0, clipping_norm=0.01, num_sampled_clients=4
        )

    server = run(tmp_path, strategy=private, sizes=SIZES, rounds=1)
    before = weights(factory(output_dir=tmp_path)(Context(1, 1, {}, RecordDict(), {})))
    assert 0 < distance(weights(server.trainer), before) <= 0.0101
    assert server.ledger.left_out == []


def test_clipping_at_the_clients_works_within(tmp_path: Path) -> None:
    def private(context: Context) -> Any:
        return DifferentialPrivacyClientSideFixedClipping(
            FedAvg(fraction_evaluate=0.0), noise_multiplier=0.0, clipping_norm=0.01, num_sampled_clients=4
        )

    server = run(tmp_path, strategy=private, sizes=SIZES, rounds=1, mods=[fixedclipping_mod])
    before = weights(factory(output_dir=tmp_path)(Context(1, 1, {}, RecordDict(), {})))
    assert server.ledger.left_out == []
    assert 0 < distance(weights(server.trainer), before) <= 0.0101


def test_mods_work_around_the_clients(tmp_path: Path) -> None:
    private = LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=100.0, delta=0.1)
    server = run(tmp_path, mods=[message_size_mod, arrays_size_mod, private])
    assert server.ledger.participants[2] == [0, 1, 2, 3]
    assert all(torch.isfinite(one).all() for one in weights(server.trainer).values())
