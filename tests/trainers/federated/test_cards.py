"""The card of a model that clients have trained."""

import re
from pathlib import Path
from typing import Any

import pytest
from federation import assert_same, factory, run_federation, weights
from flwr.app import Error, Message
from flwr.serverapp.strategy import FedAvg
from transformers import Trainer, TrainingArguments

from hf_ext.trainers import DISAMConfig, DISAMTrainer
from hf_ext.trainers.federated import FedLESAM, FedLESAMConfig, FedLESAMTrainer, client_app, server_app, simulate


def strategy(_: Any) -> FedLESAM:
    return FedLESAM(fraction_train=0.75, fraction_evaluate=1.0)


def accuracy(prediction: Any) -> dict[str, float]:
    labels = prediction.label_ids
    return {"accuracy": float((prediction.predictions.argmax(-1) == labels).mean()), "personal_accuracy": 1.0}


def run(folder: Path, kind: type = FedLESAMTrainer, arguments: type = FedLESAMConfig, **options: Any) -> Any:
    own = {"disam_lambda": 0.0} if arguments is DISAMConfig else {}
    scored = {"compute_metrics": accuracy}
    make = factory(kind, arguments, output_dir=folder / "clients", trainer_kwargs=scored, **own)
    server = server_app(options.pop("strategy", strategy), make, num_rounds=2, output_dir=folder / "out")
    run_federation(server, client_app(make), 4, **options)
    return server


def rows_of(page: Path) -> dict[str, str]:
    """Tables of two columns, by their first."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page.read_text(), flags=re.MULTILINE))


def raises(reply: Message, number: int) -> Error:
    return Error(2, "RuntimeError: out of memory")


def test_how_the_federation_went(tmp_path: Path) -> None:
    server = run(tmp_path, faults={0: raises})
    shown = rows_of(tmp_path / "out" / "README.md")
    sizes = [len(clients) for clients in server.ledger.participants.values()]
    assert shown["strategy"] == "FedLESAM" and shown["rounds"] == "2" and shown["clients known"] == "4"
    taken = " to ".join(map(str, sorted(set(sizes))))
    assert shown["clients taken per round"] == taken
    assert int(shown["replies left out"]) == 6 - sum(sizes) > 0
    values = sum(tensor.numel() for tensor in weights(server.trainer).values())
    for way in ("to", "from"):
        assert 4 * values <= int(shown[f"bytes {way} a client per round"]) < 4 * values + 300 * 60
    assert shown["fedlesam_rho"] == "0.1" and shown["learning_rate"] == "0.1"


def test_both_views_are_there_and_no_counts_of_classes(tmp_path: Path) -> None:
    run(tmp_path)
    text = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"\| \*\*FedLESAM\*\* \| accuracy \| 0\.\d+ \| 1 \|", text)  # of the server
    (head,) = [line for line in text.splitlines() if line.startswith("| |")]
    (clients,) = [line for line in text.splitlines() if line.startswith("| clients' own data |")]
    cells = dict(zip(head.split("|"), clients.split("|"), strict=True))
    assert any("personal_accuracy" in name and float(value) == 1 for name, value in cells.items() if value.strip())
    assert not (tmp_path / "out" / "partition.png").exists()


def test_any_method_of_ours_has_one(tmp_path: Path) -> None:
    """Where the strategy is Flower's."""
    run(tmp_path, DISAMTrainer, DISAMConfig, strategy=lambda _: FedAvg(fraction_evaluate=0.0))
    shown = rows_of(tmp_path / "out" / "README.md")
    assert "FedAvg" in shown["strategy"] and shown["clients taken per round"] == "4"
    assert "clients' own data" not in (tmp_path / "out" / "README.md").read_text()


def test_a_plain_trainer_keeps_its_own(tmp_path: Path) -> None:
    run(tmp_path, Trainer, TrainingArguments)
    assert (tmp_path / "out" / "model.safetensors").is_file() and not (tmp_path / "out" / "README.md").exists()


def test_in_process_as_by_any_engine(tmp_path: Path) -> None:
    by_hand = run(tmp_path / "1")
    make = factory(FedLESAMTrainer, FedLESAMConfig, output_dir=tmp_path / "2")
    server = server_app(strategy, make, num_rounds=2)
    simulate(server, client_app(make), num_clients=4, in_process=True)
    assert_same(weights(server.trainer), weights(by_hand.trainer))
    assert server.ledger.participants == by_hand.ledger.participants


def test_errors_of_a_server_in_process_come_through(tmp_path: Path) -> None:
    make = factory(FedLESAMTrainer, FedLESAMConfig, output_dir=tmp_path)
    server = server_app(strategy, make, num_rounds=0)
    with pytest.raises(ValueError, match="num_rounds: found 0, allowed are integers >= 1"):
        simulate(server, client_app(make), num_clients=4, in_process=True)
