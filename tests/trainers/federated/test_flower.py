"""The example's app under Flower's own commands: `flwr run` in this machine, and a deployment of processes."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from federation import assert_same
from processes import EXAMPLE, Flower, is_training, kill_with_children, ledger_in, model_in, tree, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # each message starts a process that imports torch

CLIENTS, ROUNDS = 3, 2
SETTINGS: dict[str, Any] = {"num-server-rounds": ROUNDS, "num-clients": CLIENTS, "fraction-train": 0.6}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the example, which nothing that runs it changes."""
    copy = tmp_path_factory.mktemp("app") / "federated"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = tree(copy)
    copy.chmod(0o555)
    yield copy
    assert tree(copy) == before


@pytest.fixture(scope="module")
def simulated(app: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `flwr run` leaves of a simulation; nothing of it is running any more."""
    folder = tmp_path_factory.mktemp("simulated")
    with Flower(folder) as flower:
        nodes = f"num-supernodes={CLIENTS} client-resources-num-cpus=1 init-args-num-cpus=1"
        out = str(folder / "out")
        run = flower.start_run("run", app, "local", "--federation-config", nodes, **SETTINGS, output_dir=out)
        log = flower.finish(run, "run")
        until(lambda: (folder / "out" / "model.safetensors").is_file(), log[-2000:], 1.0)
        assert flower.processes("flower-superlink")  # Flower leaves it behind
    assert flower.processes() == []
    return folder / "out"


def test_flwr_run_trains_in_a_simulation(simulated: Path) -> None:
    ledger = ledger_in(simulated)
    assert [len(who) for who in ledger["participants"].values()] == [2] * ROUNDS
    assert ledger["left_out"] == []
    assert sorted(ledger["history"]["server"]) == ["0", "1", "2"]


def test_a_deployment_is_the_simulation_and_survives_its_servers_death(
    app: Path, simulated: Path, tmp_path: Path
) -> None:
    """Bit for bit: a simulation, and a deployment whose server is killed in the midst of a round and goes on."""
    settings = {**SETTINGS, "output-dir": str(tmp_path / "out"), "state-dir": str(tmp_path / "state")}
    with Flower(tmp_path) as flower:
        flower.start_superlink()
        for client in range(CLIENTS):
            flower.start_supernode(client, CLIENTS)
        killed = flower.start_run("killed", app, "loopback", **settings)
        until(lambda: (tmp_path / "out" / "round-1").is_dir(), "the first round")
        until(lambda: flower.processes("flwr-clientapp"), "a client of the second round")
        flower.kill("flwr-serverapp")
        killed.kill()
        assert not (tmp_path / "out" / "round-2").exists()

        resumed = flower.start_run("resumed", app, "loopback", **settings, resume_from_checkpoint=True)
        flower.finish(resumed, "resumed")
    assert flower.processes() == []
    assert_same(model_in(tmp_path / "out"), model_in(simulated))
    first, second = (ledger_in(folder) for folder in (simulated, tmp_path / "out"))
    assert second["left_out"] == []
    assert first.pop("federation") != second.pop("federation")
    assert first.pop("rounds_done") != second.pop("rounds_done")
    assert first == second


def test_supernodes_come_late_are_killed_and_come_again(app: Path, tmp_path: Path) -> None:
    """Flower waits for two missed heartbeats, a minute; then the round goes on without the one that was killed."""
    out = tmp_path / "out"
    settings = {**SETTINGS, "num-server-rounds": 3, "fraction-train": 1.0, "output-dir": str(out)}
    with Flower(tmp_path) as flower:
        flower.start_superlink()
        _, killed = (flower.start_supernode(client, CLIENTS) for client in (0, 1))
        run = flower.start_run("run", app, "loopback", **settings)
        until(lambda: (out / "round-1").is_dir(), "the first round")
        flower.start_supernode(2, CLIENTS)
        until(lambda: is_training(killed.pid), "a client of the second round")
        kill_with_children(killed.pid)
        flower.start_supernode(1, CLIENTS)
        log = flower.finish(run, "run")
    ledger = ledger_in(out)
    assert ledger["participants"] == {"1": [0, 1], "2": [0], "3": [0, 1, 2]}, log[-3000:]
    assert len(ledger["left_out"]) == 1
    assert ledger["left_out"][0].startswith("round 2: the reply of client 1 is left out: found an error (")
    assert ledger["num_clients"] == CLIENTS
    assert flower.processes() == []
