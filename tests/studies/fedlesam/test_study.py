"""FedLESAM's studies: every system is what its name says, and runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from flwr.serverapp.strategy import FedAvg, FedProx

from hf_ext.studies import reproduce
from hf_ext.studies.fedlesam.study import (
    ALONG,
    AROUND,
    COMPARISON,
    FEDPROX,
    LARGER,
    LESAM,
    PERSONAL,
    RANDOM,
    SCAFFOLD,
    SETTINGS,
    SPEED,
    STUDIES,
)
from hf_ext.studies.fedlesam.systems import client_of, strategy_of
from hf_ext.trainers import DISAMTrainer
from hf_ext.trainers.federated import FedLESAM, FedLESAMTrainer


def _settings(name: str) -> dict[str, Any]:
    system = next(one for one in COMPARISON.systems if one.name == name)
    return {**system.options, **system.points(COMPARISON.cases[0])[-1]}


def test_what_systems_are() -> None:
    clients = {system.name: client_of(_settings(system.name)) for system in COMPARISON.systems}
    kinds = {name: client.trainer for name, client in clients.items()}
    assert kinds["FedSAM"] is DISAMTrainer and kinds[LESAM] is FedLESAMTrainer
    assert clients["FedSAM"].options == {"disam_rho": 0.5, "disam_lambda": 0.0}
    lesam, random, scaffold = (clients[name].options for name in (LESAM, RANDOM, SCAFFOLD))
    assert {**random, "fedlesam_direction": "global"} == lesam and random != lesam
    assert (scaffold["fedlesam_variant"], scaffold["fedlesam_rho"], scaffold["fedlesam_lamb"]) == ("S", 0.0, 1.0)
    strategies = {system.name: strategy_of(_settings(system.name)) for system in COMPARISON.systems}
    assert strategies["FedAvg"] is FedAvg and strategies["FedSAM"] is FedAvg
    prox, server = (strategies[name]() for name in (FEDPROX, SCAFFOLD))
    assert isinstance(prox, FedProx) and prox.proximal_mu == 0.1
    assert isinstance(server, FedLESAM) and server.fedlesam_variant == "S"


def test_perturbations_have_the_same_lengths_to_choose_from() -> None:
    for study in STUDIES:
        systems = [system for system in study.systems if system.name in ("FedSAM", LESAM, RANDOM)]
        lengths = [system.options.get("rho", system.grid) for system in systems]
        assert len(lengths) == 3 and all(one == lengths[0] for one in lengths)
        assert {case.data for case in study.cases} <= SETTINGS.keys()
    assert STUDIES == (COMPARISON, LARGER)


@pytest.mark.slow
def test_pictures_of_a_user(tmp_path: Path) -> None:
    numbers = np.arange(1500)
    columns = {
        "image": list(np.random.default_rng(0).integers(0, 256, (1500, 4, 4, 3), dtype=np.uint8)),
        "label": numbers % 10,
        "domain": numbers % 3,
        "split": ["test" if number % 7 == 0 else "train" for number in numbers],
    }
    labels = {"label": ClassLabel(10), "domain": ClassLabel(3)}
    features = Features(image=Image(), split=Value("string"), **labels)
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "pictures.parquet")
    data = dict.fromkeys(("origins", "images"), str(tmp_path / "pictures.parquet"))
    result = reproduce(LARGER, out=tmp_path, data=data, quick=True, seeds=1)
    assert not result.skipped and [len(systems) for systems in result.cases.values()] == [4, 4]
    assert all(0 <= system.test[0] <= 1 for systems in result.cases.values() for system in systems.values())


@pytest.mark.slow
def test_every_system_runs(tmp_path: Path) -> None:
    study = replace(COMPARISON, cases=COMPARISON.cases[-1:])
    result = reproduce(study, out=tmp_path, quick=True, seeds=1)
    (systems,) = result.cases.values()
    assert len(systems) == 9
    for system in systems.values():
        assert {PERSONAL, SPEED, ALONG, AROUND} == system.details.keys()
        assert 0 < system.test[0] < 1 and system.details[SPEED] == [2.0]
