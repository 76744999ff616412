"""Hostile and unlucky inputs: nodes, models, files and settings that could be taken for something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from federation import LocalGrid, assert_same, factory, rows, run_federation, tiny_vit, weights
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import nn

from hf_ext.trainers.federated import (
    FedLESAM,
    FedLESAMConfig,
    FedLESAMTrainer,
    client_app,
    server_app,
)
from hf_ext.trainers.federated.checkpoints import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from hf_ext.trainers.federated.clients import PASSPORT
from hf_ext.trainers.federated.ledger import Ledger
from hf_ext.trainers.federated.records import from_record, to_record
from hf_ext.trainers.federated.travelling import load_tensors, travelling_tensors


def run(make: Any, strategy: Any = None, *, clients: int = 4, rounds: int = 2, **kwargs: Any) -> Any:
    own = {key: kwargs.pop(key) for key in ("faults", "contexts", "run_config") if key in kwargs}
    state = kwargs.pop("state_dir", None)
    server = server_app(strategy or (lambda _: FedAvg(fraction_evaluate=0.0)), make, num_rounds=rounds, **kwargs)
    server.grid = run_federation(server, client_app(make, state_dir=state), clients, **own)
    return server


def node(client: int, **config: Any) -> Context:
    config = {"partition-id": client, "num-partitions": 4} | {
        key.replace("_", "-"): one for key, one in config.items()
    }
    return Context(run_id=1, node_id=100 + client, node_config=config, state=RecordDict(), run_config={})


# ---------------------------------------------------------------------------------------------- nodes
@pytest.mark.parametrize("number", ["1", 1.0, True, -1])
def test_a_node_whose_number_is_none_is_left_out_by_name(tmp_path: Path, number: Any) -> None:
    server = run(factory(output_dir=tmp_path), contexts={1: node(1, partition_id=number)})
    assert server.ledger.participants[2] == [0, 2, 3]
    assert len(server.ledger.left_out) == 2
    assert all(f"partition-id: found {number!r}" in line for line in server.ledger.left_out)


@pytest.mark.parametrize("clients", ["4", 4.0, True, 0])
def test_a_node_that_does_not_know_how_many_there_are(tmp_path: Path, clients: Any) -> None:
    server = run(factory(output_dir=tmp_path), contexts={1: node(1, num_partitions=clients)})
    assert server.ledger.participants[2] == [0, 2, 3]
    assert f"num-partitions: found {clients!r}" in server.ledger.left_out[0]


def test_of_two_nodes_that_are_one_client_one_counts(tmp_path: Path) -> None:
    """As when a node has come again, and Flower has not yet noticed that it had gone."""
    make = factory(output_dir=tmp_path)
    server = run(make, contexts={3: node(1)})
    alone = run(make, faults={3: lambda reply, number: None})
    assert_same(weights(server.trainer), weights(alone.trainer))
    assert server.ledger.participants[2] == [0, 1, 2]
    line = "the reply of client 1 is left out: found a second one, allowed is one"
    assert server.ledger.left_out == [f"round {number}: {line}" for number in (1, 2)]


def test_a_client_that_has_come_again_counts_though_its_old_node_does_not_answer(tmp_path: Path) -> None:
    gone = {3: lambda reply, number: Error(5, "node unavailable")}
    server = run(factory(output_dir=tmp_path), contexts={3: node(1)}, faults=gone)
    assert server.ledger.participants[2] == [0, 1, 2]
    assert "client 1 is left out: found an error (node unavailable)" in server.ledger.left_out[0]


def test_that_a_node_is_gone_flower_says_in_its_own_name(tmp_path: Path) -> None:
    def gone(reply: Message, number: int) -> Message:
        error = Message(Error(5, "Node Unavailable"), reply_to=reply)
        error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
        error.metadata.__dict__["_src_node_id"] = 1
        return error

    server = run(factory(output_dir=tmp_path), faults={1: gone})
    line = "the reply of client 1 is left out: found an error (Node Unavailable)"
    assert server.ledger.left_out == [f"round {number}: {line}" for number in (1, 2)]


def test_a_client_that_is_there_as_two_nodes_is_one_of_all(tmp_path: Path) -> None:
    contexts = {number: node(number % 3, num_partitions=3) for number in range(4)}
    assert run(factory(output_dir=tmp_path), contexts=contexts).ledger.num_clients == 3


LIES: list[dict[str, Any]] = [
    {"partition-id": "1"},
    {"partition-id": 1.5},
    {"partition-id": [1, 2]},
    {"partition-id": -7},
    {"partition-id": 1, "num-partitions": "many"},
    {"partition-id": 1, "num-partitions": 10**12},
    {"partition-id": 1, "num-partitions": [4]},
]


@pytest.mark.parametrize("lie", LIES)
def test_what_a_hostile_node_says_of_itself_stops_nobody(
    tmp_path: Path, lie: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lying(LocalGrid):
        def _reply(self, message: Message) -> list[Message]:
            (reply,) = super()._reply(message)
            if message.metadata.message_type == "query" and self.nodes[message.metadata.dst_node_id] == 1:
                reply.content[PASSPORT] = ConfigRecord(lie)
            return [reply]

    import federation

    monkeypatch.setattr(federation, "LocalGrid", Lying)
    server = run(factory(output_dir=tmp_path))
    assert {0, 2, 3} < set(server.ledger.participants[2])
    assert server.ledger.num_clients == 4


@pytest.mark.parametrize("buffers", [7, "classifier.bias", ["classifier.bias"], [1, 2]])
def test_a_client_does_not_decide_which_tensors_are_no_parameters(tmp_path: Path, buffers: Any) -> None:
    options: dict[str, Any] = {"fedlesam_variant": "D"}
    make = factory(FedLESAMTrainer, FedLESAMConfig, output_dir=tmp_path, **options)

    def lies(reply: Message, number: int) -> Message:
        reply.content[PASSPORT]["buffers"] = buffers
        return reply

    strategy = lambda _: FedLESAM(fraction_evaluate=0.0, **options)  # noqa: E731
    assert_same(weights(run(make, strategy, faults={1: lies}).trainer), weights(run(make, strategy).trainer))


def test_what_others_write_is_bounded_and_in_one_line(tmp_path: Path) -> None:
    def shouts(reply: Message, number: int) -> Error:
        return Error(2, "a\nround 9: client 0 has won\n" * 10_000)

    server = run(factory(output_dir=tmp_path), faults={1: shouts})
    assert all(len(line) < 1100 and "\n" not in line for line in server.ledger.left_out)


def test_the_ledger_keeps_the_newest_lines() -> None:
    ledger = Ledger()
    for number in range(10_050):
        ledger.leave_out(str(number))
    assert len(ledger.left_out) == 10_000 and ledger.left_out[-1] == "10049"


@pytest.mark.parametrize("decay", ["0.5", True, 0, -1.0, 2.0, [0.5], float("nan")])
def test_rates_of_decay_are_numbers(tmp_path: Path, decay: Any) -> None:
    server = run(factory(output_dir=tmp_path), train_config={"learning-rate-decay": decay}, rounds=1)
    assert all("learning-rate-decay: found" in line for line in server.ledger.left_out)
    assert len(server.ledger.left_out) == 4


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "60", None, True])
def test_timeouts_are_seconds(tmp_path: Path, timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"timeout: found .*, allowed are seconds > 0"):
        run(factory(output_dir=tmp_path), timeout=timeout)


# ---------------------------------------------------------------------------------------------- models
class Odd(nn.Module):
    """Every kind of tensor that a model may hold, some of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.tied = nn.Linear(3, 2)
        self.tied.weight = self.linear.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.narrow = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.wave = nn.Parameter(torch.ones(2, dtype=torch.complex64) * 1j)
        self.register_buffer("seen", torch.tensor(7))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("bytes", torch.tensor([255, 0], dtype=torch.uint8))


@pytest.mark.parametrize("around", [lambda model: model, nn.DataParallel, torch.compile])
def test_odd_models_travel_there_and_back(around: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    model = around(Odd())
    own = travelling_tensors(model)
    assert set(own) == set(Odd().state_dict()) - {"tied.weight"}
    before = {name: tensor.detach().clone() for name, tensor in own.items()}
    place = save_checkpoint(tmp_path, Checkpoint(1, to_record(own)))
    received = from_record(load_checkpoint(place).arrays, own, "the model")
    load_tensors(model, {name: torch.zeros_like(tensor) for name, tensor in own.items()})
    load_tensors(model, received)
    for name, tensor in travelling_tensors(model).items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name


def test_names_of_tensors_are_no_paths(tmp_path: Path) -> None:
    arrays = to_record({name: torch.ones(1) for name in ("a/b", "../../c", "/d", "names", "e f")})
    loaded = load_checkpoint(save_checkpoint(tmp_path, Checkpoint(1, arrays)))
    assert list(loaded.arrays) == list(arrays)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "federation.json",
        "model.safetensors",
        "round-1",
        "strategy.safetensors",
    ]


class Counting(nn.Module):
    """A model whose buffer changes with every pass, also in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_vit()
        self.register_buffer("passes", torch.tensor(0))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> Any:
        self.passes += 1
        return self.inner(pixel_values=pixel_values, labels=labels)


def test_what_evaluation_changes_in_a_model_is_not_the_global_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"make_model": Counting, "sizes": (8, 8, 8, 8)}
    seen = run(factory(output_dir=tmp_path, **options))
    unseen = run(factory(output_dir=tmp_path, evaluate=False, **options))
    assert int(unseen.trainer.model.passes) == 4  # 2 rounds of 2 batches
    assert_same(weights(seen.trainer), weights(unseen.trainer))


# ---------------------------------------------------------------------------------------------- data
def test_streams_are_trained_on_and_evaluated(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path, max_steps=3)

    def streaming(context: Context) -> Any:
        trainer = make(context)
        trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
        trainer.eval_dataset = rows(6, 1).to_iterable_dataset()
        return trainer

    server = run(streaming, lambda _: FedAvg(), rounds=1)
    assert server.ledger.left_out == []
    evaluated = [one for one in server.grid.received if "eval_loss" in one.content.get("metrics", {})]
    assert [reply.content["metrics"]["num-examples"] for reply in evaluated] == [6] * 4
    train = [one for one in server.grid.received if "train_loss" in one.content.get("metrics", {})]
    assert [reply.content["metrics"]["num-examples"] for reply in train] == [12] * 4


# ---------------------------------------------------------------------------------------------- files
def a_checkpoint(number: int, value: float) -> Checkpoint:
    return Checkpoint(number, to_record({"w": torch.tensor(value)}), {}, {"value": value})


@pytest.mark.parametrize("fails", ["save_file", "write_text", "replace", "rmtree"])
def test_a_checkpoint_that_is_not_finished_leaves_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    from hf_ext.trainers.federated import checkpoints

    for number in (1, 2):
        save_checkpoint(tmp_path, a_checkpoint(number, number))

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    owner = {"save_file": checkpoints.safetensors.numpy, "write_text": Path, "replace": checkpoints.os}
    with monkeypatch.context() as patched:
        patched.setattr(owner.get(fails, checkpoints.shutil), fails, killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, a_checkpoint(3, 3))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and load_checkpoint(newest).values["value"] == (3 if fails == "rmtree" else 2)
    save_checkpoint(tmp_path, a_checkpoint(3, 3))
    save_checkpoint(tmp_path, a_checkpoint(4, 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-3", "round-4"]  # nothing is left lying aside


def test_a_full_disk_ends_a_federation_with_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_ext.trainers.federated import checkpoints

    make = factory(output_dir=tmp_path / "clients")
    out = {"output_dir": tmp_path / "out"}
    save = checkpoints.safetensors.numpy.save_file

    def full(tensors: Any, path: Any, *args: Any) -> None:
        if "round-2" in str(path):
            raise OSError(28, "No space left on device")
        save(tensors, path, *args)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.safetensors.numpy, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            run(make, rounds=3, **out)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["round-1"]
    resumed = run(make, rounds=3, resume_from_checkpoint=True, **out)
    assert_same(weights(resumed.trainer), weights(run(make, rounds=3).trainer))


def test_a_folder_behind_a_link_that_clients_share(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make = factory(output_dir=tmp_path / "link", save_strategy="steps", save_steps=1, save_total_limit=1)
    first = run(make, rounds=2, output_dir=tmp_path / "link")
    again = run(make, rounds=3, output_dir=tmp_path / "link", resume_from_checkpoint=True)
    assert sorted(again.ledger.participants) == [1, 2, 3]
    assert again.ledger.federation == first.ledger.federation
    assert (tmp_path / "real" / "round-3").is_dir() and (tmp_path / "real" / "client-3").is_dir()


@pytest.mark.parametrize("said", ["true", "false", "", "round-9"])
def test_words_are_no_checkpoints(tmp_path: Path, said: str) -> None:
    with pytest.raises(ValueError, match=rf"resume_from_checkpoint: found .*{said}"):
        run(factory(output_dir=tmp_path), run_config={"resume-from-checkpoint": said})


def test_an_older_checkpoint_is_not_gone_on_from_beside_newer_ones(tmp_path: Path) -> None:
    """Its rounds would stand among those of the other course."""
    make, out = factory(output_dir=tmp_path / "clients"), tmp_path / "out"
    run(make, rounds=2, output_dir=out)
    with pytest.raises(ValueError, match="found round-1, and round-2 of another course"):
        run(make, output_dir=out, resume_from_checkpoint=out / "round-1")
    elsewhere = run(make, rounds=2, output_dir=tmp_path / "other", resume_from_checkpoint=out / "round-1")
    assert_same(weights(elsewhere.trainer), weights(run(make, rounds=2).trainer))


# ---------------------------------------------------------------------------------------------- two at a time
def test_two_federations_in_one_process_do_not_meet(tmp_path: Path) -> None:
    make = factory(FedLESAMTrainer, FedLESAMConfig, output_dir=tmp_path)
    alone = run(make, lambda _: FedLESAM(fraction_train=0.5, fraction_evaluate=0.0), rounds=3)
    contexts: dict[int, Any] = {}

    def with_another_within(reply: Message, number: int) -> Message:
        run(make, lambda _: FedLESAM(fraction_train=0.75, fraction_evaluate=0.0), rounds=1, state_dir=tmp_path / "s")
        return reply

    faults = dict.fromkeys(range(4), with_another_within)
    strategy = lambda _: FedLESAM(fraction_train=0.5, fraction_evaluate=0.0)  # noqa: E731
    both = run(make, strategy, rounds=3, faults=faults, contexts=contexts, state_dir=tmp_path / "s")
    assert both.ledger.participants == alone.ledger.participants
    assert both.ledger.left_out == []


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_seeds_at_their_ends(tmp_path: Path, seed: int) -> None:
    assert run(factory(output_dir=tmp_path, seed=seed, data_seed=seed)).ledger.left_out == []


def test_the_server_keeps_no_messages(tmp_path: Path) -> None:
    server = run(factory(output_dir=tmp_path), rounds=3)
    kept = [one for owner in (server.ledger, server.result) for one in vars(owner).values()]
    arrays = [one for one in kept if isinstance(one, Message | np.ndarray)]
    assert arrays == []


def test_lists_of_rows_are_data_too(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path)

    def listed(context: Context) -> Any:
        trainer = make(context)
        trainer.train_dataset = [dict(row) for row in trainer.train_dataset]
        assert not isinstance(trainer.train_dataset, datasets.Dataset)
        return trainer

    assert_same(weights(run(listed).trainer), weights(run(make).trainer))
