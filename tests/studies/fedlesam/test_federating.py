"""Federations in this process: equal to Flower's simulation, and what is read off them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn

from hf_ext.studies import Preparation
from hf_ext.studies.fedlesam import federating
from hf_ext.studies.fedlesam.data import Federation, federation, open_problem, prepare
from hf_ext.studies.fedlesam.federating import Client, Setting, Trained, personal_accuracy, train
from hf_ext.studies.fedlesam.models import small_model
from hf_ext.studies.fedlesam.systems import client_of, strategy_of
from hf_ext.trainers.federated import simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    prepare(Preparation("digits", 0, "digits", folder))
    return folder


@pytest.fixture
def few(folder: Path) -> tuple[Federation, Callable[[], nn.Module]]:
    """Five clients of the digits, one of which is active in a round."""
    problem = open_problem(folder)
    return federation(problem, "classes", 0, clients=5), lambda: small_model(problem, 0)


@pytest.mark.slow
def test_weights_are_those_of_flowers_simulation(few: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """S has the most that could differ: what clients remember, and what travels beside the model."""
    settings = {"client": "lesam", "variant": "S", "rho": 0.1, "lamb": 1.0}
    setting = Setting(rounds=3, epochs=1, learning_rate=0.05)

    def with_processes(server: Any, client: Any, *, num_clients: int, in_process: bool) -> Any:
        assert in_process
        return simulate(server, client, num_clients=num_clients)

    def trained() -> Trained:
        monkeypatch.setattr(federating, "ACTIVE", 0.6)
        found = train(*few, client_of(settings), strategy_of(settings), setting, seed=1)
        assert found is not None
        return found

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a client of the simulation has
    try:
        here = trained()
        monkeypatch.setattr(federating, "simulate", with_processes)
        there = trained()
    finally:
        torch.set_num_threads(threads)
    assert here.test.tolist() == there.test.tolist() and here.validation.tolist() == there.validation.tolist()
    start, ends = few[1]().state_dict(), there.model.state_dict()
    for name, tensor in here.model.state_dict().items():
        assert torch.equal(tensor, ends[name]), name
    assert any(not torch.equal(tensor, ends[name]) for name, tensor in start.items())


def test_what_has_diverged_has_no_scores(few: Any) -> None:
    assert train(*few, Client(), FedAvg, Setting(2, 1, 1e30), seed=0) is None


def test_faults_other_than_diverging_are_raised(few: Any) -> None:
    broken = Client(options={"max_steps": 1, "lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "x"}})
    with pytest.raises(RuntimeError, match="a client's reply was left out"):
        train(*few, broken, FedAvg, Setting(1, 1, 0.1), seed=0)


def test_rounds_to_a_target() -> None:
    """Five rounds in a row whose mean is there; never is all rounds."""
    trained = Trained(nn.Identity(), np.array([0.0, 1, 0, 0, 0, 1, 1, 1, 1, 1]), np.zeros(10))
    assert [trained.rounds_to(target) for target in (0.2, 0.4, 0.6, 1.0, 1.1)] == [5, 6, 8, 10, 10]
    assert trained.final == {"test": 1.0, "validation": 0.0}


def test_personal_accuracy_is_of_a_clients_own_rows(few: Any) -> None:
    """A view that names what a client has most of is right for that share of its test rows."""
    clients, make_model = few
    most = clients.counts.argmax(1)

    def view(client: int, logits: torch.Tensor) -> torch.Tensor:
        return torch.eye(clients.classes)[most[client]].expand(len(logits), -1)

    shares = [float((clients.test_of(client).labels == most[client]).float().mean()) for client in range(len(clients))]
    assert personal_accuracy(clients, view, make_model()) == pytest.approx(np.mean(shares))
    assert 0 < np.mean(shares) < 1
