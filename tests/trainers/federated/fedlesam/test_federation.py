"""FedLESAM's clients and server together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from federation import assert_same, factory, run_federation, tiny_vit, weights
from flwr.app import Context, RecordDict
from flwr.serverapp.strategy import FedAvg, FedProx
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import Trainer, TrainingArguments

from hf_ext.trainers import DISAMConfig, DISAMTrainer
from hf_ext.trainers.federated import (
    FedLESAM,
    FedLESAMConfig,
    FedLESAMTrainer,
    client_app,
    server_app,
)
from hf_ext.trainers.federated.memory import ClientMemory

VARIANTS = ("base", "S", "D")


def run(strategy: Any, make: Any, *, clients: int = 4, rounds: int = 3, **kwargs: Any) -> Any:
    faults, contexts = kwargs.pop("faults", None), kwargs.pop("contexts", None)
    client = client_app(make, state_dir=kwargs.pop("state_dir", None))
    server = server_app(strategy, make, num_rounds=rounds, **kwargs)
    server.grid = run_federation(server, client, clients, faults=faults, contexts=contexts)
    return server


def lesam(**options: Any) -> Any:
    return lambda _: FedLESAM(**{"fraction_evaluate": 0.0, **options})


def clients(tmp_path: Path, **options: Any) -> Any:
    return factory(
        FedLESAMTrainer, FedLESAMConfig, output_dir=tmp_path, **{"lr_scheduler_type": "constant", **options}
    )


def test_with_rho_0_it_is_flowers_fedavg_bit_for_bit(tmp_path: Path) -> None:
    sizes = (5, 12, 17, 30)
    plain = factory(output_dir=tmp_path, lr_scheduler_type="constant", sizes=sizes)
    fedavg = run(lambda _: FedAvg(fraction_train=0.75, fraction_evaluate=0.0), plain)
    ours = run(lesam(fraction_train=0.75), clients(tmp_path, sizes=sizes, fedlesam_rho=0.0))
    assert_same(weights(ours.trainer), weights(fedavg.trainer))


def test_with_rho_it_is_another_model_from_the_second_round_on(tmp_path: Path) -> None:
    for rounds, same in ((1, True), (2, False)):
        plain = run(lesam(), clients(tmp_path, fedlesam_rho=0.0), rounds=rounds)
        ours = run(lesam(), clients(tmp_path, fedlesam_rho=0.5), rounds=rounds)
        first, second = weights(plain.trainer), weights(ours.trainer)
        assert all(torch.equal(first[name], second[name]) for name in first) == same


def test_one_client_and_the_servers_rate_1_are_the_plain_trainer(tmp_path: Path) -> None:
    make = clients(tmp_path)
    plain = factory(Trainer, TrainingArguments, output_dir=tmp_path, lr_scheduler_type="constant")
    trainer = plain(Context(1, 1, {"partition-id": 0}, RecordDict(), {}))
    trainer.train()
    server = run(lesam(min_train_nodes=1, min_available_nodes=1), make, clients=1, rounds=1)
    assert_same(weights(server.trainer), weights(trainer))


def test_both_sources_are_one_where_all_take_part(tmp_path: Path) -> None:
    by_client = run(lesam(), clients(tmp_path, fedlesam_rho=0.3), rounds=2)
    options: dict[str, Any] = {"fedlesam_source": "server"}
    by_server = run(lesam(**options), clients(tmp_path, fedlesam_rho=0.3, **options), rounds=2)
    assert_same(weights(by_client.trainer), weights(by_server.trainer))


def test_a_client_that_comes_again_compares_with_what_it_received_before(tmp_path: Path) -> None:
    contexts: dict[int, Any] = {}
    server = run(lesam(fraction_train=0.5), clients(tmp_path), rounds=4, contexts=contexts)
    taken = server.ledger.taken
    assert any(last < 4 for last in taken.values())
    federation = server.ledger.federation
    received = {
        message.content["config"]["server-round"]: message.content["arrays"]
        for message in server.grid.sent
        if message.metadata.message_type == "train"
    }
    for client, last in taken.items():
        memory = ClientMemory(contexts[client], None, client, federation).recall(99, last, ("control",))
        for name, tensor in memory["received"].items():
            assert torch.equal(tensor, torch.from_numpy(received[last][name].numpy()))


class ByHand:
    """S and D over rounds, by their definitions, with one step of SGD per client and round."""

    def __init__(self, variant: str, make: Any, clients: int, lamb: float, rate: float) -> None:
        self.variant, self.make, self.lamb, self.rate = variant, make, lamb, rate
        self.model = tiny_vit()
        self.w = [param.detach().clone() for param in self.model.parameters()]
        zeros = [torch.zeros_like(one) for one in self.w]
        self.c = zeros
        self.c_i = [list(zeros) for _ in range(clients)]

    def gradients(self, client: int, at: list[Tensor]) -> list[Tensor]:
        trainer = self.make(Context(1, 1, {"partition-id": client}, RecordDict(), {}))
        rows = trainer.train_dataset[:]
        with torch.no_grad():
            for param, value in zip(self.model.parameters(), at, strict=True):
                param.copy_(value)
        loss = self.model(pixel_values=rows["pixel_values"], labels=rows["labels"]).loss
        return list(torch.autograd.grad(loss, list(self.model.parameters())))

    def round(self, sampled: list[int]) -> None:
        moves, changes = [], []
        for client in sampled:
            gradients = self.gradients(client, self.w)
            own = self.c_i[client]
            if self.variant == "S":
                step = [g + self.lamb * (c - c_i) for g, c, c_i in zip(gradients, self.c, own, strict=True)]
            else:
                step = [g + self.lamb * h_i for g, h_i in zip(gradients, own, strict=True)]
            move = [-self.rate * one for one in step]
            if self.variant == "S":
                new = [c_i - c - m / self.rate for c_i, c, m in zip(own, self.c, move, strict=True)]
            else:
                new = [h_i + m for h_i, m in zip(own, move, strict=True)]
            changes.append([a - b for a, b in zip(new, own, strict=True)])
            self.c_i[client] = new
            moves.append(move)
        mean = [torch.stack(one).mean(0) for one in zip(*moves, strict=True)]
        total = [torch.stack(one).sum(0) / len(self.c_i) for one in zip(*changes, strict=True)]
        self.c = [c + one for c, one in zip(self.c, total, strict=True)]
        drift = self.c if self.variant == "D" else [torch.zeros_like(one) for one in self.w]
        self.w = [w + m + h for w, m, h in zip(self.w, mean, drift, strict=True)]


@pytest.mark.parametrize("variant", ["S", "D"])
def test_variants_are_their_equations_under_partial_participation(tmp_path: Path, variant: str) -> None:
    make = clients(
        tmp_path,
        sizes=(4, 4, 4, 4),
        fedlesam_rho=0.0,
        fedlesam_variant=variant,
        fedlesam_lamb=0.7,
        max_grad_norm=0.0,
        learning_rate=0.05,
    )
    server = run(lesam(fraction_train=0.5, fedlesam_variant=variant), make, rounds=6)
    by_hand = ByHand(variant, make, clients=4, lamb=0.7, rate=0.05)
    for number in range(1, 7):
        by_hand.round(server.ledger.participants[number])
    for tensor, expected in zip(server.trainer.model.parameters(), by_hand.w, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_controls_of_replies_that_are_refused_do_not_count(tmp_path: Path, variant: str) -> None:
    """A client whose reply was refused in round 1 is, for all, one that was not there in it."""
    make = clients(tmp_path, fedlesam_variant=variant, fedlesam_rho=0.0)
    strategy = lesam(fedlesam_variant=variant)

    def in_round_1(reply: Any, number: int) -> Any:
        return None if number == 1 else reply

    def broken_in_round_1(reply: Any, number: int) -> Any:
        if number == 1:
            reply.content["metrics"]["num-examples"] = -1
        return reply

    absent = run(strategy, make, faults={2: in_round_1})
    refused = run(strategy, make, faults={2: broken_in_round_1})
    assert_same(weights(absent.trainer), weights(refused.trainer))


class Killed(Exception):
    pass


@pytest.mark.parametrize("source", ["client", "server"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_server_that_dies_in_a_round_goes_on_with_all_states(tmp_path: Path, variant: str, source: str) -> None:
    options: dict[str, Any] = {"fedlesam_variant": variant, "fedlesam_source": source}
    make = clients(tmp_path / "trainers", fedlesam_rho=0.2, **options)
    strategy = lesam(fraction_train=0.5, **options)

    class Dying(FedLESAM):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            if server_round == 3:
                raise Killed  # the clients have trained, and remember it
            return super().aggregate_train(server_round, replies)

    Dying.__name__ = "FedLESAM"
    whole = run(strategy, make, rounds=5, output_dir=tmp_path / "whole", state_dir=tmp_path / "state_whole")
    killed: dict[str, Any] = {"output_dir": tmp_path / "killed", "state_dir": tmp_path / "state"}
    with pytest.raises(Killed):
        run(lambda _: Dying(fraction_train=0.5, fraction_evaluate=0.0, **options), make, rounds=5, **killed)
    resumed = run(strategy, make, rounds=5, resume_from_checkpoint=True, **killed)
    assert_same(weights(resumed.trainer), weights(whole.trainer))
    assert resumed.ledger.participants == whole.ledger.participants


def test_a_server_and_clients_of_two_minds_are_refused(tmp_path: Path) -> None:
    server = run(lesam(fedlesam_variant="D"), clients(tmp_path), rounds=1)
    assert len(server.ledger.left_out) == 4
    assert all("fedlesam_variant" in line and "'D'" in line for line in server.ledger.left_out)


def test_adapters_alone_are_perturbed_and_travel(tmp_path: Path) -> None:
    def with_lora() -> Any:
        torch.manual_seed(5)
        return get_peft_model(tiny_vit(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"]))

    server = run(lesam(), clients(tmp_path, make_model=with_lora, fedlesam_rho=0.5))
    plain = run(lesam(), clients(tmp_path, make_model=with_lora, fedlesam_rho=0.0))
    assert server.ledger.left_out == []
    changed = {
        name for name, one in weights(server.trainer).items() if not torch.equal(one, weights(plain.trainer)[name])
    }
    assert changed and all("lora_" in name or "modules_to_save" in name for name in changed)


def test_fedsam_is_the_sam_of_disam(tmp_path: Path) -> None:
    make = factory(DISAMTrainer, DISAMConfig, output_dir=tmp_path, disam_lambda=0.0, disam_rho=0.05)
    server = run(lambda _: FedAvg(fraction_evaluate=0.0), make, rounds=1)
    assert server.ledger.left_out == [] and server.ledger.participants[1] == [0, 1, 2, 3]


def test_flowers_fedprox_pulls_towards_the_global_model(tmp_path: Path) -> None:
    def moved(mu: float) -> float:
        make = clients(tmp_path, fedlesam_rho=0.0, num_train_epochs=4)
        before = weights(make(Context(1, 1, {}, RecordDict(), {})))
        server = run(lambda _: FedProx(proximal_mu=mu, fraction_evaluate=0.0), make, rounds=1)
        assert server.ledger.left_out == []
        after = weights(server.trainer)
        return float(sum((after[name] - before[name]).norm() ** 2 for name in before))

    assert moved(5.0) < 0.5 * moved(0.0)


@pytest.mark.parametrize(
    ("options", "down", "up"),
    [
        ({}, 1, 1),
        ({"fedlesam_source": "server"}, 2, 1),
        ({"fedlesam_variant": "S"}, 2, 2),
        ({"fedlesam_variant": "D"}, 1, 1),
    ],
)
def test_what_travels_is_what_the_page_says(tmp_path: Path, options: dict[str, Any], down: int, up: int) -> None:
    plain = run(lesam(), clients(tmp_path, fedlesam_rho=0.0))
    one = plain.grid.bytes_sent[-1]
    server = run(lesam(**options), clients(tmp_path, **options))
    assert one > 0
    assert server.grid.bytes_sent[-1] == down * one
    assert server.grid.bytes_received[-1] == up * one


@pytest.mark.slow
def test_compiled_clients_have_their_graphs_from_the_first_round(tmp_path: Path) -> None:
    """Every message makes a new Trainer and model: compiled anew, they would soon reach torch's limit."""
    plain = run(lesam(), clients(tmp_path, sizes=(8, 12), fedlesam_rho=0.5), clients=2)
    make = clients(tmp_path, sizes=(8, 12), fedlesam_rho=0.5, torch_compile=True, torch_compile_backend="aot_eager")
    graphs = []

    def counting(context: Context) -> Any:
        graphs.append(counters["stats"]["unique_graphs"])
        return make(context)

    torch._dynamo.reset()
    counters.clear()
    compiled = run(lesam(), counting, clients=2)
    ours, theirs = weights(compiled.trainer), weights(plain.trainer)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-5
    graphs = [count for count in graphs if count]  # the server's Trainer and the first client's find none
    assert len(graphs) > 3 and len(set(graphs[1:])) == 1
