"""DISAM's study with a backbone of the user's: what is left out, what is trained, every system runs; by the script."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from torch import nn
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTImageProcessor, ViTModel

from hf_ext.data import load
from hf_ext.studies import Preparation, Run, reproduce
from hf_ext.studies.backbones import options_of
from hf_ext.studies.disam import tuned as study
from hf_ext.studies.disam.data import BUILDERS, Problem
from hf_ext.studies.disam.study import VARIANCE, WORST

SCRIPT = Path(__file__).parents[3] / "examples" / "disam_tuned.py"
DOMAINS = ("photo", "art", "sketch", "cartoon")
ROWS, CLASSES = 480, 3


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """480 pictures in colour, of 12 x 12 pixels, of three classes in four domains."""
    rng = np.random.default_rng(0)
    rows = {
        "image": list(rng.integers(0, 256, (ROWS, 12, 12, 3), dtype=np.uint8)),
        "label": [row % CLASSES for row in range(ROWS)],
        "domain": [row // CLASSES % len(DOMAINS) for row in range(ROWS)],
        "split": ["test" if row >= 360 else "train" for row in range(ROWS)],
    }
    names = {"label": ClassLabel(names=["a", "b", "c"]), "domain": ClassLabel(names=list(DOMAINS))}
    features = Features(image=Image(), **names, split=Value("string"))
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "pictures.parquet")
    return str(tmp_path / "pictures.parquet")


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8)).save_pretrained(tmp_path / "res")
    return tmp_path / "res"


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, dict[str, torch.Tensor], Problem]]:
    """Those that are trained from now on, with their weights at first and the problem that they are for."""
    made, all_made = study.network, []

    def watched(options: Any, problem: Problem) -> nn.Module:
        model = made(options, problem)
        all_made.append((model, {name: value.clone() for name, value in model.state_dict().items()}, problem))
        return model

    monkeypatch.setattr(study, "network", watched)
    return all_made


@pytest.fixture
def train(pictures: str, tmp_path: Path) -> Callable[[Path, int], Any]:
    """Ten updates of ERM on the case of this number."""

    def run(backbone: Path, case: int) -> Any:
        (tmp_path / "prepared").mkdir()
        study.prepare(Preparation("pictures", 0, pictures, tmp_path / "prepared"))
        made = study.tuned(str(backbone))
        system = replace(made.systems[0], grid={})
        return study.run(Run(made.cases[case], system, {}, 0, pictures, tmp_path / "prepared", quick=True))

    return run


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_what_is_trained(
    kind: str, lora: bool, train: Any, networks: Any, request: pytest.FixtureRequest, pictures: str
) -> None:
    outcome = train(request.getfixturevalue(kind), int(lora))
    ((model, before, _),) = networks
    after = model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not [name for name in moved if "running_" in name or "num_batches" in name]
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert moved <= trained
    if lora:
        assert all("lora_" in name or "modules_to_save" in name for name in trained)
        adapted = {name.split(".lora_A")[0] for name in trained if ".lora_A" in name}
        layers = {name for name, layer in model.named_modules() if hasattr(layer, "base_layer")}
        assert adapted == layers and len(layers) > 5
        assert {"weight", "bias"} <= {name.rsplit(".", 1)[1] for name in moved if "modules_to_save" in name}
    else:
        assert trained == {name for name, _ in model.named_parameters()}
        assert any(name.startswith("backbone.") for name in moved) and "classifier.weight" in moved
    assert 0 <= outcome.test <= 1


def test_one_domain_is_left_out(train: Any, networks: Any, vit: Path) -> None:
    outcome = train(vit, 0)
    ((_, _, problem),) = networks
    held = DOMAINS.index("sketch")
    assert set(problem.parts["unseen"].domains) == {held} and len(problem.parts["unseen"]) == ROWS / len(DOMAINS)
    assert all(held not in problem.parts[name].domains for name in ("train", "validation", "test"))
    unseen = {name: value for name, value in outcome.details.items() if name.startswith("unseen")}
    assert unseen == {"unseen sketch": outcome.test}


def test_pictures_are_as_they_were(pictures: str, tmp_path: Path) -> None:
    problem = BUILDERS["pictures"](Preparation("pictures", 0, pictures, tmp_path))
    first = np.asarray(load(pictures)["train"][0]["image"])
    assert np.array_equal(problem.parts["unseen"].inputs[0], first.transpose(2, 0, 1))
    assert problem.parts["unseen"].inputs.dtype == np.uint8


def test_what_the_study_refuses(pictures: str, vit: Path, tmp_path: Path) -> None:
    made = study.tuned(str(vit), left_out="clay")
    allowed = "allowed are the domains of pictures, photo, art, sketch, cartoon"
    with pytest.raises(ValueError, match=f"--leave-out: found 'clay', {allowed}"):
        reproduce(made, out=tmp_path / "out", data={"pictures": pictures})
    two = load(pictures)["train"].filter(lambda row: row["domain"] < 2)
    two = two.cast_column("domain", ClassLabel(names=list(DOMAINS[:2])))
    two.to_parquet(tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"found the domains \['photo', 'art'\] in pictures, allowed are three or mo"):
        reproduce(made, out=tmp_path / "out", data={"pictures": str(tmp_path / "two.parquet")})
    assert not (tmp_path / "out").exists()


def test_the_backbone_and_the_domain_name_the_runs(vit: Path) -> None:
    for case in study.tuned(str(vit), left_out="art", trust_remote_code=True).cases:
        assert case.options.items() >= options_of(str(vit), trust_remote_code=True).items()
        assert case.options["left_out"] == "art"


def test_every_system_is_tuned_alike_and_runs(pictures: str, vit: Path, tmp_path: Path) -> None:
    made = study.tuned(str(vit))
    assert len({len(system.points(case)) for case in made.cases for system in made.systems}) == 1
    result = reproduce(made, out=tmp_path / "out", data={"pictures": pictures}, quick=True, seeds=1)
    for systems in result.cases.values():
        assert list(systems) == ["ERM", "SAM", "DISAM"]
        # the seed is shared: nothing but rho and lambda tells them apart
        assert len({system.details[VARIANCE][0] for system in systems.values()}) == len(systems)
    assert {("DISAM", "SAM", None), ("DISAM", "ERM", WORST)} <= {
        (row.method, row.baseline, row.detail) for row in result.judged
    }


@pytest.mark.slow
def test_the_script(pictures: str, vit: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--backbone", str(vit), "--data", f"pictures={pictures}"]
    command += ["--out", str(tmp_path), "--quick", "--seeds", "1", "--leave-out", "art"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    report = (tmp_path / "quick" / "disam-tuned" / "report.md").read_text()
    words = "--backbone vit --data pictures=pictures.parquet --seeds 1 --quick --leave-out art"
    assert f"python examples/disam_tuned.py {words}" in report and "unseen art" in report
