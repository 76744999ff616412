"""Which of Flower's strategies and mods go with which clients: each either works or is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation import assert_same, factory, run_federation, tiny_vit, weights
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, arrays_size_mod, fixedclipping_mod, message_size_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy

from hf_ext.models import replace_classifier
from hf_ext.trainers.federated import (
    FedGELAConfig,
    FedGELATrainer,
    FedLESAM,
    FedLESAMConfig,
    FedLESAMTrainer,
    client_app,
    server_app,
)

CLIENTS = 4
SIZES = (8, 8, 8, 8)
NO_EVALUATION = {"fraction_evaluate": 0.0}


def wrapped(kind: str, **options: Any) -> Callable[[Strategy], Strategy]:
    norms = {"noise_multiplier": 0.01, "num_sampled_clients": CLIENTS}
    return lambda strategy: getattr(flower, f"DifferentialPrivacy{kind}")(strategy, **norms, **options)


#: Flower's strategies of their own
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(**NO_EVALUATION),
    "FedAvgM": lambda: flower.FedAvgM(server_momentum=0.5, server_learning_rate=0.9, **NO_EVALUATION),
    "FedAdam": lambda: flower.FedAdam(eta=0.01, **NO_EVALUATION),
    "FedYogi": lambda: flower.FedYogi(eta=0.01, **NO_EVALUATION),
    "FedAdagrad": lambda: flower.FedAdagrad(eta=0.01, **NO_EVALUATION),
    "QFedAvg": lambda: flower.QFedAvg(client_learning_rate=0.1, **NO_EVALUATION),
    "Krum": lambda: flower.Krum(num_malicious_nodes=1, **NO_EVALUATION),
    "MultiKrum": lambda: flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2, **NO_EVALUATION),
    "Bulyan": lambda: flower.Bulyan(num_malicious_nodes=0, **NO_EVALUATION),
    "FedMedian": lambda: flower.FedMedian(**NO_EVALUATION),
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(beta=0.26, **NO_EVALUATION),
}
PROXIMAL = {"FedProx": lambda: flower.FedProx(proximal_mu=0.1, **NO_EVALUATION)}

#: what Flower wraps around a strategy, and the mod that its clients need
WRAPPERS: dict[str, tuple[Callable[[Strategy], Strategy], Any]] = {
    "server, fixed": (wrapped("ServerSideFixedClipping", clipping_norm=0.5), None),
    "server, adaptive": (wrapped("ServerSideAdaptiveClipping", initial_clipping_norm=0.5), None),
    "clients, fixed": (wrapped("ClientSideFixedClipping", clipping_norm=0.5), fixedclipping_mod),
    "clients, adaptive": (wrapped("ClientSideAdaptiveClipping", initial_clipping_norm=0.5), adaptiveclipping_mod),
}
MODS: dict[str, Any] = {
    "LocalDpMod": LocalDpMod(clipping_norm=1.0, sensitivity=0.01, epsilon=10.0, delta=0.1),
    "message_size_mod": message_size_mod,
    "arrays_size_mod": arrays_size_mod,
}


def with_etf() -> Any:
    return replace_classifier(tiny_vit())


def lesam_clients(tmp_path: Path, **options: Any) -> Any:
    constant = {"lr_scheduler_type": "constant"}
    return factory(FedLESAMTrainer, FedLESAMConfig, output_dir=tmp_path, sizes=SIZES, **constant, **options)


CLIENT_KINDS: dict[str, Callable[[Path], Any]] = {
    "plain": lambda tmp_path: factory(output_dir=tmp_path, sizes=SIZES),
    "FedLESAM": lesam_clients,
    "FedGELA": lambda tmp_path: factory(
        FedGELATrainer, FedGELAConfig, output_dir=tmp_path, sizes=SIZES, make_model=with_etf
    ),
}


def run(strategy: Any, make: Any, *, mods: Any = None, rounds: int = 2, **kwargs: Any) -> Any:
    faults = kwargs.pop("faults", None)
    server = server_app(strategy, make, num_rounds=rounds, **kwargs)
    server.grid = run_federation(server, client_app(make, mods=mods), CLIENTS, faults=faults)
    return server


def assert_all_took_part(server: Any, rounds: int = 2) -> None:
    assert server.ledger.left_out == []
    assert server.ledger.participants == {number: list(range(CLIENTS)) for number in range(1, rounds + 1)}


def moved(server: Any, make: Any) -> float:
    before = weights(make(Context(1, 1, {}, RecordDict(), {})))
    return float(sum((one - before[name]).norm() ** 2 for name, one in weights(server.trainer).items()) ** 0.5)


@pytest.mark.parametrize("clients", CLIENT_KINDS)
@pytest.mark.parametrize("name", [*STRATEGIES, *PROXIMAL])
def test_strategies(tmp_path: Path, name: str, clients: str) -> None:
    make = CLIENT_KINDS[clients](tmp_path)
    server = run(lambda _: (STRATEGIES | PROXIMAL)[name](), make)
    if clients == "plain" and name in PROXIMAL:
        assert len(server.ledger.left_out) == 2 * CLIENTS
        assert all("proximal-mu: found 0.1 for a Trainer" in line for line in server.ledger.left_out)
        return
    assert_all_took_part(server)
    assert 0 < moved(server, make) < 10


@pytest.mark.parametrize("clients", CLIENT_KINDS)
@pytest.mark.parametrize("name", WRAPPERS)
def test_differential_privacy(tmp_path: Path, name: str, clients: str) -> None:
    wrapper, mod = WRAPPERS[name]
    make = CLIENT_KINDS[clients](tmp_path)
    strategy = FedLESAM if clients == "FedLESAM" else FedAvg
    server = run(lambda _: wrapper(strategy(**NO_EVALUATION)), make, mods=[mod] if mod else None)
    assert_all_took_part(server)
    assert 0 < moved(server, make) < 1.2  # 2 rounds of at most 0.5, and noise


@pytest.mark.parametrize("clients", CLIENT_KINDS)
@pytest.mark.parametrize("name", MODS)
def test_mods(tmp_path: Path, name: str, clients: str) -> None:
    make = CLIENT_KINDS[clients](tmp_path)
    strategy = FedLESAM if clients == "FedLESAM" else FedAvg
    assert_all_took_part(run(lambda _: strategy(**NO_EVALUATION), make, mods=[MODS[name]]))


# ---------------------------------------------------------------------------------------------- S, D, source="server"
NEEDING: dict[str, dict[str, Any]] = {
    "S": {"fedlesam_variant": "S"},
    "D": {"fedlesam_variant": "D"},
    "server": {"fedlesam_source": "server"},
}


@pytest.mark.parametrize("needing", NEEDING)
@pytest.mark.parametrize("name", STRATEGIES)
def test_other_strategies_do_not_help_these_clients_and_they_say_so(tmp_path: Path, name: str, needing: str) -> None:
    make = lesam_clients(tmp_path, **NEEDING[needing])
    server = run(lambda _: STRATEGIES[name](), make, rounds=1)
    assert len(server.ledger.left_out) == CLIENTS and moved(server, make) == 0
    assert all("a server that says nothing of it" in line for line in server.ledger.left_out)


@pytest.mark.parametrize("needing", NEEDING)
@pytest.mark.parametrize("name", WRAPPERS)
def test_what_changes_updates_is_refused_around_a_strategy_that_reckons_with_them(
    tmp_path: Path, name: str, needing: str
) -> None:
    wrapper, mod = WRAPPERS[name]
    make = lesam_clients(tmp_path, **NEEDING[needing])
    with pytest.raises(ValueError, match=r"fedlesam_(variant|source): found '\w+' within DifferentialPrivacy"):
        run(lambda _: wrapper(FedLESAM(**NEEDING[needing])), make, mods=[mod] if mod else None)


@pytest.mark.parametrize("needing", NEEDING)
@pytest.mark.parametrize("clients", ["plain", "FedGELA"])
def test_these_strategies_refuse_other_clients(tmp_path: Path, clients: str, needing: str) -> None:
    make = CLIENT_KINDS[clients](tmp_path)
    server = run(lambda _: FedLESAM(**NEEDING[needing], **NO_EVALUATION), make)
    assert len(server.ledger.left_out) == 2 * CLIENTS and moved(server, make) == 0
    assert all("allowed with this server are Trainers with FedLESAMMixin" in line for line in server.ledger.left_out)


@pytest.mark.parametrize(("needing", "first"), [("S", 1), ("D", 1), ("server", 2)])
def test_a_mod_that_changes_updates_is_refused_by_clients_that_remember_them(
    tmp_path: Path, needing: str, first: int
) -> None:
    make = lesam_clients(tmp_path, **NEEDING[needing])
    server = run(lambda _: FedLESAM(**NEEDING[needing], **NO_EVALUATION), make, mods=[MODS["LocalDpMod"]])
    expected = [f"round {number}: the reply of client {c} " for number in range(first, 3) for c in range(CLIENTS)]
    assert [line.partition("is left out")[0] for line in server.ledger.left_out] == expected
    assert all("LocalDpMod" in line for line in server.ledger.left_out)


@pytest.mark.parametrize("name", ["message_size_mod", "arrays_size_mod"])
@pytest.mark.parametrize("needing", NEEDING)
def test_mods_that_look_only_go_with_all(tmp_path: Path, needing: str, name: str) -> None:
    make = lesam_clients(tmp_path, **NEEDING[needing])
    assert_all_took_part(run(lambda _: FedLESAM(**NEEDING[needing], **NO_EVALUATION), make, mods=[MODS[name]]))


def test_secure_aggregation_is_of_flowers_older_servers_and_says_so(tmp_path: Path) -> None:
    """Its mods wait for the stages of `SecAggPlusWorkflow`, which drives `flwr.server`'s strategies alone."""
    from flwr.client.mod import secaggplus_mod

    server = run(lambda _: FedAvg(**NO_EVALUATION), CLIENT_KINDS["plain"](tmp_path), mods=[secaggplus_mod], rounds=1)
    assert len(server.ledger.left_out) == CLIENTS
    assert all("found an error" in line and "secaggplus" in line for line in server.ledger.left_out)


# ---------------------------------------------------------------------------------------------- noise, order, state
def test_noise_does_not_follow_from_the_seeds(tmp_path: Path) -> None:
    """Two federations of one seed differ in their noise alone, whether clients or the server add it."""
    make = factory(output_dir=tmp_path, sizes=SIZES)
    private, mod = WRAPPERS["server, fixed"][0], MODS["LocalDpMod"]
    for strategy, mods in ((lambda _: private(FedAvg(**NO_EVALUATION)), None), (STRATEGIES["FedAvg"], [mod])):
        factory_of = strategy if mods is None else lambda _: FedAvg(**NO_EVALUATION)
        first, second = (weights(run(factory_of, make, rounds=1, mods=mods).trainer) for _ in range(2))
        assert any(not torch.equal(one, second[name]) for name, one in first.items())


def turned_around(reply: Message, number: int) -> Message:
    arrays = reply.content["arrays"]
    reply.content["arrays"] = ArrayRecord({name: arrays[name] for name in reversed(list(arrays))})
    return reply


@pytest.mark.parametrize("name", ["Krum", "QFedAvg", "Bulyan", "FedMedian"])
def test_the_order_of_arrays_in_a_reply_does_not_matter(tmp_path: Path, name: str) -> None:
    make = factory(output_dir=tmp_path, sizes=SIZES)
    straight = run(lambda _: STRATEGIES[name](), make, rounds=1)
    around = run(lambda _: STRATEGIES[name](), make, rounds=1, faults={0: turned_around, 2: turned_around})
    assert_same(weights(around.trainer), weights(straight.trainer))


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "QFedAvg"])
def test_strategies_with_a_state_go_on_with_it(tmp_path: Path, name: str) -> None:
    make = factory(output_dir=tmp_path / "clients", sizes=SIZES)
    whole = run(lambda _: STRATEGIES[name](), make, rounds=4)

    def dies(reply: Message, number: int) -> Any:
        if number == 3:
            raise Killed
        return reply

    out = {"output_dir": tmp_path / "out"}
    with pytest.raises(Killed):
        run(lambda _: STRATEGIES[name](), make, rounds=4, faults={0: dies}, **out)
    resumed = run(lambda _: STRATEGIES[name](), make, rounds=4, resume_from_checkpoint=True, **out)
    assert_same(weights(resumed.trainer), weights(whole.trainer))


def test_a_strategy_that_has_spoiled_a_round_goes_on_as_before_it(tmp_path: Path) -> None:
    """An infinite momentum would leave no later round finite."""
    make = factory(output_dir=tmp_path, sizes=SIZES)

    class Spoiled(flower.FedAvgM):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            if server_round == 2:
                self.server_learning_rate = float("inf")
            return super().aggregate_train(server_round, replies)

    server = run(lambda _: Spoiled(server_momentum=0.5, **NO_EVALUATION), make, rounds=3)
    assert sorted(server.ledger.participants) == [1, 3]
    assert "the global model stays as it was" in server.ledger.left_out[0]


@pytest.mark.parametrize("name", WRAPPERS)
def test_without_any_reply_private_strategies_go_on(tmp_path: Path, name: str) -> None:
    wrapper, mod = WRAPPERS[name]
    make = factory(output_dir=tmp_path, sizes=SIZES)
    silent = dict.fromkeys(range(CLIENTS), lambda reply, number: None if number == 1 else reply)
    server = run(lambda _: wrapper(FedAvg(**NO_EVALUATION)), make, faults=silent, mods=[mod] if mod else None)
    assert server.ledger.participants == {2: list(range(CLIENTS))}


def test_a_strategy_is_not_used_twice(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path, sizes=SIZES)
    for kind in (FedLESAM, FedAvg):
        strategy = kind(**NO_EVALUATION)
        run(lambda _: strategy, make, rounds=1)  # noqa: B023
        with pytest.raises(ValueError, match=rf"strategy_factory: found a {kind.__name__} that has run already"):
            run(lambda _: strategy, make, rounds=1)  # noqa: B023


# ---------------------------------------------------------------------------------------------- others' apps
def written_by_hand() -> ClientApp:
    """A ClientApp as Flower's quickstart has it."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = {name: Array(array.numpy() + np.float32(1)) for name, array in message.content["arrays"].items()}
        metrics = MetricRecord({"train_loss": 1.0, "num-examples": 10})
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    return app


def test_clients_of_others_under_our_server(tmp_path: Path) -> None:
    make = factory(output_dir=tmp_path, sizes=SIZES)
    server = server_app(lambda _: FedAvg(**NO_EVALUATION), make, num_rounds=2)
    before = weights(make(Context(1, 1, {}, RecordDict(), {})))
    run_federation(server, written_by_hand(), CLIENTS)
    assert server.ledger.left_out == [] and len(server.ledger.participants[2]) == CLIENTS
    for name, tensor in weights(server.trainer).items():
        torch.testing.assert_close(tensor, before[name] + 2)


@pytest.mark.parametrize("clients", CLIENT_KINDS)
def test_our_clients_under_a_server_of_others(tmp_path: Path, clients: str) -> None:
    from federation import LocalGrid

    from hf_ext.trainers.federated.records import to_record
    from hf_ext.trainers.federated.travelling import travelling_tensors

    make = CLIENT_KINDS[clients](tmp_path / "clients")
    app = client_app(make, state_dir=tmp_path / "state")
    first = to_record(travelling_tensors(make(Context(1, 1, {}, RecordDict(), {})).model))
    run_federation(server_app(lambda _: FedAvg(**NO_EVALUATION), make, num_rounds=1), app, CLIENTS)  # of another run
    result = FedAvg().start(LocalGrid(app, CLIENTS), first, num_rounds=2, train_config=ConfigRecord({"lr": 0.1}))
    assert sorted(result.train_metrics_clientapp) == sorted(result.evaluate_metrics_clientapp) == [1, 2]
    assert any((result.arrays[name].numpy() != array.numpy()).any() for name, array in first.items())
