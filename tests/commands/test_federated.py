"""`hf-ext train` and `hf-ext demo` of federated methods."""

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ConvNextForImageClassification

from hf_ext import _small_models
from hf_ext.commands.cli import main

pytest.importorskip("flwr")

from hf_ext.commands import federated, fedgela, fedlesam
from hf_ext.commands.federated import Clients, FederationArguments

EXAMPLES = Path(__file__).parents[2] / "examples"
Train = Callable[..., int]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """`hf-ext train METHOD` of a small federation in this process; the exit code."""
    torch.manual_seed(0)
    ConvNextForImageClassification(_small_models.convnext(num_labels=10)).save_pretrained(tmp_path / "model")

    def run(method: str, *options: str, out: str = "out") -> int:
        words = ["train", method, "--model_name_or_path", str(tmp_path / "model"), "--dataset", "digits"]
        words += ["--output_dir", str(tmp_path / out), "--num_clients", "4", "--num_rounds", "2", "--max_steps", "2"]
        words += ["--optim", "sgd", "--learning_rate", "0.1", "--use_cpu", "true", "--in_process", "true", *options]
        return main(words)

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_clients", "0"], "num_clients: found 0, allowed are integers >= 1"),
        (["--num_rounds", "0"], "num_rounds: found 0, allowed are integers >= 1"),
        (["--fraction_train", "1.5"], "fraction_train: found 1.5, allowed are numbers in (0, 1]"),
        (["--client_test_share", "1"], "client_test_share: found 1.0, allowed are numbers in [0, 1)"),
        (["--global_lr", "0"], "global_lr: found 0.0, allowed are numbers > 0"),
        (["--learning_rate_decay", "2"], "learning_rate_decay: found 2.0, allowed are"),
        (["--dirichlet_alpha", "0"], "dirichlet_alpha: found 0.0, allowed are numbers > 0"),
        (["--partition", "column"], "partition_column: found None with partition 'column'"),
        (["--partition_column", "labels"], "partition_column: found 'labels' with partition 'dirichlet'"),
        (["--partition", "column", "--partition_column", "writer"], "partition_column: found 'writer', allowed are"),
        (["--num_clients", "10000"], "num_clients: found 10000 for 600 rows"),
        (
            ["--partition", "classes", "--classes_per_client", "11"],
            "classes_per_client: found 11, allowed are",
        ),
        (["--fedlesam_variant", "S", "--optim", "adamw_torch"], "optim: found 'adamw_torch', allowed is 'sgd'"),
        (["--num_client", "3"], "did you mean num_clients?"),
    ],
)
def test_mistakes_get_one_line_before_anything_is_written(
    options: list[str], message: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("fedlesam", *options) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_the_best_model_is_none_of_a_federation(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    best = ["--load_best_model_at_end", "true", "--eval_strategy", "steps", "--save_strategy", "steps"]
    assert train("fedlesam", *best) == 2
    assert "load_best_model_at_end: found True, allowed is False" in capsys.readouterr().err


def test_a_folder_of_checkpoints_is_not_trained_into(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("fedlesam") == 0
    before = weights(tmp_path / "out")
    assert train("fedlesam") == 2
    assert "output_dir: found round-2 of a federation" in capsys.readouterr().err
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path / "out").items())


WITHOUT_FLOWER = """
import sys
sys.modules["flwr"] = None
from hf_ext.commands.cli import main
import hf_ext.commands.disam
for words in (["--help"], ["train", "fedlesam", "--help"]):
    try: main(words)
    except SystemExit as stop: assert not stop.code
sys.exit(main(["train", "fedlesam", "--model_name_or_path", "x"]))
"""


def test_without_flower(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_FLOWER], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "pip install 'hf-ext[federated]'" in done.stderr
    assert "--num_clients" in done.stdout and "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ training
def test_a_folder_with_a_card(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("fedlesam", "--client_test_share", "0.2") == 0
    printed = capsys.readouterr().out
    assert re.search(r"600 rows of 4 clients: Dirichlet\(0.3\) over classes.*eval_accuracy: ", printed, re.DOTALL)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| clients taken per round | 2 |" in card and "| clients' own data |" in card
    assert "partition" not in card and not list((tmp_path / "out").glob("partition*"))
    assert "eval_accuracy" in json.loads((tmp_path / "out" / "eval_results.json").read_text())
    AutoModelForImageClassification.from_pretrained(tmp_path / "out")


def test_a_resumed_run_ends_as_the_whole_one(train: Train, tmp_path: Path) -> None:
    rounds = ["--fedlesam_rho", "0.5", "--fraction_train", "1"]
    assert train("fedlesam", *rounds) == 0
    half = weights(tmp_path / "out")
    assert train("fedlesam", *rounds, "--num_rounds", "4", "--resume_from_checkpoint", "true") == 0
    assert train("fedlesam", *rounds, "--num_rounds", "4", out="whole") == 0
    assert same(tmp_path / "out", tmp_path / "whole")
    assert any(not torch.equal(value, weights(tmp_path / "whole")[name]) for name, value in half.items())


def test_what_the_server_does(train: Train, tmp_path: Path) -> None:
    """Each option changes the model."""
    options: dict[str, list[str]] = {
        "plain": [],
        "global": ["--global_lr", "0.5"],
        "decay": ["--learning_rate_decay", "0.5"],
        "S": ["--fedlesam_variant", "S"],
        "server": ["--fedlesam_source", "server"],
    }
    found = set()
    for name, words in options.items():
        assert train("fedlesam", *words, "--fraction_train", "1", "--fedlesam_rho", "0.5", out=name) == 0
        found.add(float(weights(tmp_path / name)["classifier.weight"].double().abs().sum()))
    assert len(found) == len(options) - 1  # of clients that all take part, server and client know the same change


def test_fedgela_has_a_simplex_and_both_views(train: Train, tmp_path: Path) -> None:
    options = ["--partition", "classes", "--classes_per_client", "3", "--etf_seed", "3"]
    options += ["--client_test_share", "0.2", "--save_partition", "true"]
    assert train("fedgela", *options) == 0
    out = tmp_path / "out"
    assert json.loads((out / "config.json").read_text())["etf_seed"] == 3
    card = (out / "README.md").read_text()
    assert "personal_accuracy" in card and "(partition.png)" in card and (out / "partition.png").is_file()
    assert len(json.loads((out / "partition.json").read_text())["clients"]) == 4
    # and goes on with the head that it has
    assert train("fedgela", "--model_name_or_path", str(out), out="again") == 0
    assert torch.equal(weights(tmp_path / "again")["model.classifier.weight"], weights(out)["model.classifier.weight"])


def test_a_lora(train: Train, tmp_path: Path) -> None:
    lora = ["--lora_r", "2", "--lora_target_modules", "pwconv1", "--lora_modules_to_save", "classifier"]
    assert train("fedlesam", *lora) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    state = load_file(tmp_path / "out" / "round-2" / "model.safetensors")
    assert all("lora" in name or "classifier" in name for name in state)


@pytest.mark.slow
def test_processes_of_ray_leave_the_same_model(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train("fedlesam", "--fedlesam_rho", "0.5") == 0
    capfd.readouterr()
    assert train("fedlesam", "--fedlesam_rho", "0.5", "--in_process", "false", out="ray") == 0
    printed = "".join(capfd.readouterr())
    assert "INFO" not in printed and "deprecated" not in printed
    assert same(tmp_path / "out", tmp_path / "ray")


# ------------------------------------------------------------------------------------------------ clients
def rows() -> Dataset:
    features = Features(labels=ClassLabel(names=["a", "b", "c"]), writer=Value("string"))
    columns = {"labels": [0, 1, 2] * 20, "writer": [f"w{number // 30}" for number in range(60)]}
    return Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize(
    ("options", "clients"),
    [
        ({"partition": "dirichlet", "dirichlet_alpha": 1.0}, 5),
        ({"partition": "classes", "classes_per_client": 2}, 5),
        ({"partition": "iid"}, 5),
        ({"partition": "column", "partition_column": "writer"}, 2),
    ],
)
def test_rows_are_divided(options: dict[str, Any], clients: int) -> None:
    divided = FederationArguments(num_clients=5, **options).divided(rows(), seed=1)
    assert len(divided) == clients and divided.sizes.sum() == 60
    counts = divided.counts(rows(), column="labels")
    held = (counts > 0).sum(axis=1)
    assert options["partition"] != "classes" or held.tolist() == [2] * 5
    assert options["partition"] != "column" or divided.clients == ("w0", "w1")


def test_the_factory_carries_no_data(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray ships with every task; another process loads once."""
    made: list[Clients] = []
    monkeypatch.setattr(federated, "client_app", lambda factory, **_: made.append(factory))
    monkeypatch.setattr(federated, "simulate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert train("fedlesam", "--client_test_share", "0.25") == 130
    shipped = pickle.dumps(made[0])
    assert len(shipped) < 30_000
    kept = dict(federated._LOADED)
    federated._LOADED.clear()
    factory = pickle.loads(shipped)
    loads = []
    monkeypatch.setattr(federated, "seeded", lambda *given, real=federated.seeded: loads.append(1) or real(*given))
    trainers = [factory(SimpleNamespace(node_config={"partition-id": number})) for number in (0, 1, 1)]
    assert len(loads) == 1 and trainers[1].model is not trainers[2].model
    held = len(trainers[0].train_dataset) + len(trainers[0].eval_dataset)
    assert 0 < len(trainers[0].eval_dataset) == pytest.approx(held / 4, abs=1)
    (loaded,) = kept.values()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, trainers[0].model.state_dict()[name])


# ------------------------------------------------------------------------------------------------ demos
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "systems"),
    [("fedlesam", list(fedlesam.SYSTEMS)), ("fedgela", ["FedAvg", "FedBABU", "simplex head", "FedGELA"])],
)
def test_demo_and_the_launch_script(
    method: str,
    systems: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run_snippet: Callable[..., str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", method, "--seeds", "1", "--steps", "10"]) == 0
    text = capsys.readouterr().out
    assert all(system in text for system in systems)
    card = (tmp_path / f"hf_ext_demo_{method}" / "README.md").read_text()
    assert "| clients known | 20 |" in card and "partition.png" not in card
    assert "tensor(" in run_snippet(card.split("```python\n")[1].split("```")[0], cwd=tmp_path)
    # which the options of the launch script go on from
    config = EXAMPLES / f"{method}_digits.yaml"
    assert yaml.safe_load(config.read_text())["model_name_or_path"] == f"hf_ext_demo_{method}"
    short = ["--num_rounds", "1", "--max_steps", "1", "--fraction_train", "0.1", "--in_process", "true"]
    assert main(["train", method, "--config", str(config), *short, "--use_cpu", "true"]) == 0
    assert (tmp_path / f"{method}_digits" / "README.md").is_file()


def test_scores_of_views() -> None:
    """By hand: one client of classes 0 and 1, of which it has three rows to one."""
    predicted = torch.tensor([[1.0, 0.9, 2.0], [0.5, 0.4, 0.0], [0.1, 0.0, 3.0]])
    labels, counts = torch.tensor([0, 1, 2]), torch.tensor([[3, 1, 0]])
    plain = fedgela._scores(predicted, labels, counts, has_views=False)
    assert plain == {"accuracy": 1 / 3, "personal accuracy": 0.0, "own classes known": pytest.approx(0.75)}
    view = fedgela._scores(torch.tensor([[1.0, 0.0, 0.0]] * 3), labels, counts, has_views=True)
    assert view["personal accuracy"] == pytest.approx(0.75)
    assert np.isclose(fedgela._scores(-predicted, labels, counts, has_views=True)["personal accuracy"], 0.0)
