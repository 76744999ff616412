"""Both apps together: a federation is the Trainers that it is made of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from federation import assert_same, factory, rows, run_federation, tiny_vit, weights
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageClassification, Trainer

from hf_ext.trainers import DivBSConfig, DivBSTrainer
from hf_ext.trainers.federated import FederatedMixin, client_app, server_app


class FederatedTrainer(FederatedMixin, Trainer):
    method = "fedlesam"


def everyone(context: Context) -> FedAvg:
    return FedAvg(fraction_evaluate=0.0)


def one_client(context: Context) -> FedAvg:
    return FedAvg(min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0)


def run(strategy: Any, make: Any, *, clients: int = 4, rounds: int = 2, **kwargs: Any) -> Any:
    own = {key: kwargs.pop(key) for key in ("faults", "contexts", "run_config") if key in kwargs}
    client = client_app(make, state_dir=kwargs.pop("state_dir", None))
    server = server_app(strategy, make, num_rounds=rounds, **kwargs)
    server.grid = run_federation(server, client, clients, **own)
    return server


def test_one_client_in_one_round_is_the_plain_trainer(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path, optim="adamw_torch", num_train_epochs=2)
    plain = make(Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
    plain.train()
    assert_same(weights(run(one_client, make, clients=1, rounds=1).trainer), weights(plain))


def test_every_round_has_a_new_optimizer_and_another_order(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path, optim="adamw_torch")
    plain = make(Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
    plain.train()
    after = weights(plain)
    second = make(Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
    second.model.load_state_dict(after)
    second.train()  # the same order once more
    federated = run(one_client, make, clients=1, rounds=2)
    assert any(
        not torch.equal(federated.trainer.model.state_dict()[name], one) for name, one in weights(second).items()
    )


def test_equal_shards_and_one_step_are_one_step_of_the_large_batch(tmp_path: Path) -> None:
    shards = [rows(4, seed) for seed in range(3)]
    options: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 4, "max_grad_norm": 100.0}
    make = factory(output_dir=tmp_path, sizes=[4, 4, 4], **options)
    federated = run(everyone, make, clients=3, rounds=1)
    from datasets import concatenate_datasets

    options["per_device_train_batch_size"] = 12
    large = factory(output_dir=tmp_path, **options)(Context(1, 1, {}, RecordDict(), {}))
    large.train_dataset = concatenate_datasets(shards)
    large.train()
    for name, tensor in weights(large).items():
        torch.testing.assert_close(federated.trainer.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_two_runs_are_equal_bit_for_bit(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path, seed=11)
    first, second = (
        run(lambda _: FedAvg(fraction_train=0.5, fraction_evaluate=0.5), make, rounds=3) for _ in range(2)
    )
    assert_same(weights(first.trainer), weights(second.trainer))
    assert first.ledger.participants == second.ledger.participants
    assert first.ledger.history == second.ledger.history


def test_another_seed_samples_other_clients(tmp_path: Path) -> None:
    sampled = [
        run(
            lambda _: FedAvg(fraction_train=0.5), factory(output_dir=tmp_path, seed=seed), rounds=4
        ).ledger.participants
        for seed in (1, 2)
    ]
    assert sampled[0] != sampled[1]


class Killed(Exception):
    pass


def dying(strategy: type, in_round: int) -> type:
    class Dying(strategy):  # type: ignore[misc, valid-type]
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            if server_round == in_round:
                raise Killed
            return super().aggregate_train(server_round, replies)

    Dying.__name__ = strategy.__name__
    return Dying


@pytest.mark.parametrize(("kind", "options"), [(FedAvg, {"fraction_train": 0.5}), (FedAdam, {"eta": 0.01})])
def test_a_server_that_dies_in_a_round_goes_on_as_if_it_had_not(tmp_path: Path, kind: type, options: Any) -> None:
    make = factory(output_dir=tmp_path / "clients")
    whole = run(lambda _: kind(**options), make, rounds=4, output_dir=tmp_path / "whole")
    with pytest.raises(Killed):
        run(lambda _: dying(kind, 3)(**options), make, rounds=4, output_dir=tmp_path / "killed")
    resumed = run(
        lambda _: kind(**options), make, rounds=4, output_dir=tmp_path / "killed", resume_from_checkpoint=True
    )
    assert_same(weights(resumed.trainer), weights(whole.trainer))
    assert resumed.ledger.history == whole.ledger.history
    assert resumed.ledger.participants == whole.ledger.participants
    assert resumed.result.train_metrics_clientapp == whole.result.train_metrics_clientapp


def test_checkpoints_are_not_overwritten_in_silence(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path / "clients")
    run(everyone, make, rounds=1, output_dir=tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="output_dir: found round-1 of a federation"):
        run(everyone, make, rounds=1, output_dir=tmp_path / "out")
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_a_checkpoint_of_another_strategy_or_model_is_refused(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path / "clients")
    run(everyone, make, rounds=1, output_dir=tmp_path / "out")
    resume: dict[str, Any] = {"output_dir": tmp_path / "out", "resume_from_checkpoint": True}
    with pytest.raises(ValueError, match=r"found a federation of .*FedAvg, allowed is one of .*FedAdam"):
        run(lambda _: FedAdam(), make, **resume)

    def other() -> Any:
        model = tiny_vit()
        model.classifier = torch.nn.Linear(8, 5)
        return model

    with pytest.raises(ValueError, match=r"resume_from_checkpoint: found tensor 'classifier.weight' of shape 3x8"):
        run(everyone, factory(output_dir=tmp_path / "clients", make_model=other), **resume)
    (tmp_path / "out" / "round-1" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="resume_from_checkpoint: found a broken"):
        run(everyone, make, **resume)


def test_the_model_is_left_as_trainer_leaves_one(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path / "clients")
    server = run(everyone, make, output_dir=tmp_path / "out")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert_same(loaded.state_dict(), weights(server.trainer))
    assert sorted(path.name for path in (tmp_path / "out").glob("round-*")) == ["round-1", "round-2"]


def test_only_the_adapter_travels_and_is_saved(tmp_path: Path) -> None:
    def with_lora() -> Any:
        torch.manual_seed(5)
        return get_peft_model(tiny_vit(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"]))

    make = factory(output_dir=tmp_path / "clients", make_model=with_lora)
    server = run(everyone, make, output_dir=tmp_path / "out")
    sent = [message for message in server.grid.sent if message.metadata.message_type == "train"]
    names = set(sent[0].content["arrays"])
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path / "out")
    pixels = torch.randn(2, 1, 4, 4)
    server.trainer.model.eval(), loaded.eval()
    assert torch.equal(server.trainer.model(pixels).logits, loaded(pixels).logits)


def test_metrics_of_every_kind_are_there_for_every_round(tmp_path: Path) -> None:
    server = run(lambda _: FedAvg(), factory(output_dir=tmp_path))
    assert {kind: sorted(rounds) for kind, rounds in server.ledger.history.items()} == {
        "train": [1, 2],
        "evaluate": [1, 2],
        "server": [0, 1, 2],
    }
    assert set(server.ledger.history["evaluate"][1]) == {"eval_loss"}
    assert server.ledger.history["evaluate"][2]["eval_loss"] == pytest.approx(
        server.ledger.history["server"][2]["eval_loss"]
    )


def test_a_method_trains_within_a_federation(tmp_path: Path) -> None:
    make = factory(
        DivBSTrainer, DivBSConfig, output_dir=tmp_path, divbs_ratio=0.5, per_device_train_batch_size=2, logging_steps=1
    )
    server = run(everyone, make, rounds=1)
    assert server.ledger.left_out == []
    plain = run(everyone, factory(output_dir=tmp_path), rounds=1)
    assert any(not torch.equal(weights(plain.trainer)[name], one) for name, one in weights(server.trainer).items())


def test_the_learning_rate_decays_over_rounds(tmp_path: Path) -> None:
    seen: list[float] = []
    make = factory(output_dir=tmp_path, lr_scheduler_type="constant")

    def noting(context: Context) -> Any:
        trainer = make(context)
        train = trainer.train
        trainer.train = lambda: (train(), seen.append(trainer.optimizer.param_groups[0]["lr"]))
        return trainer

    run(everyone, noting, rounds=3, train_config={"learning-rate-decay": 0.5}, clients=2)
    assert seen == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]


def test_arguments_that_all_rounds_share_stay_as_they_are(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path)
    args = make(Context(1, 1, {}, RecordDict(), {})).args
    before = dict(vars(args))

    def shared(context: Context) -> Any:
        trainer = make(context)
        trainer.args = args
        return trainer

    run(everyone, shared, train_config={"learning-rate-decay": 0.5})
    assert vars(args) == before


def test_the_run_config_says_how_many_rounds(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path)
    server = server_app(everyone, make)
    run_federation(server, client_app(make), 2, run_config={"num-server-rounds": 1})
    assert list(server.ledger.participants) == [1]


@pytest.mark.parametrize("rounds", [0, -1, True, 1.5, "3"])
def test_rounds_are_counts(tmp_path: Path, rounds: Any) -> None:
    with pytest.raises(ValueError, match="num_rounds: found"):
        run(everyone, factory(output_dir=tmp_path), rounds=rounds)


def errors_of(server: Any) -> list[str]:
    assert server.ledger.participants == {1: []} or not server.ledger.participants
    return server.ledger.left_out


def test_fedprox_of_flower_asks_for_a_trainer_that_knows_it(tmp_path: Path) -> None:
    strategy = lambda _: FedProx(proximal_mu=0.1, fraction_evaluate=0.0)  # noqa: E731
    server = run(strategy, factory(output_dir=tmp_path), rounds=1)
    assert all("proximal-mu: found 0.1 for a Trainer" in line for line in errors_of(server))
    assert len(server.ledger.left_out) == 4


def test_a_trainer_that_has_trained_already_is_refused(tmp_path: Path) -> None:
    one = factory(output_dir=tmp_path)(Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
    one.train()
    server = server_app(everyone, factory(output_dir=tmp_path), num_rounds=1)
    run_federation(server, client_app(lambda _: one), 2)
    assert all("found a Trainer that has trained already" in line for line in errors_of(server))


def test_a_factory_of_something_else_is_refused(tmp_path: Path) -> None:
    server = server_app(everyone, factory(output_dir=tmp_path), num_rounds=1)
    run_federation(server, client_app(lambda _: None), 2)
    assert all("trainer_factory: found a NoneType" in line for line in errors_of(server))


def test_a_message_without_a_model_is_answered_with_an_error(tmp_path: Path) -> None:
    from federation import LocalGrid

    app = client_app(factory(output_dir=tmp_path))
    grid = LocalGrid(app, 1)
    node = next(iter(grid.nodes))
    content = RecordDict({"config": ConfigRecord({"server-round": 1})})
    (reply,) = grid.send_and_receive([Message(content, dst_node_id=node, message_type="train")])
    assert "message: found no arrays" in reply.error.reason


def test_without_rows_to_evaluate_on_a_client_says_so(tmp_path: Path) -> None:
    server = run(lambda _: FedAvg(), factory(output_dir=tmp_path, evaluate=False), rounds=1)
    assert sum("eval_dataset: found none" in line for line in server.ledger.left_out) == 4
    assert server.ledger.participants[1] == [0, 1, 2, 3]
