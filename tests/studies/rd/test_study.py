"""RD's study: its rows, its probe, its hint, its tuned teacher; every system runs on all data that it can."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from torch import nn
from transformers import AutoModel, ResNetForImageClassification, TrainingArguments

from hf_ext import _small_models
from hf_ext._runs import arguments
from hf_ext.data import load
from hf_ext.studies import Preparation, reproduce
from hf_ext.studies.rd import study as rd
from hf_ext.studies.rd.data import TEACHER, Part, check, few, open_parts, prepare
from hf_ext.studies.rd.hint import Hinted
from hf_ext.studies.rd.study import STUDY
from hf_ext.studies.rd.teachers import as_tuned, lora_trainer, probe
from hf_ext.studies.study import Run


@pytest.fixture
def images(tmp_path: Path) -> str:
    """160 images of two classes with features that tell them apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 2
    features = rng.normal(size=(160, 6)) + 3 * labels[:, None]
    rows = {
        "image": list(rng.integers(0, 255, (160, 10, 10, 3), dtype=np.uint8)),
        "features": features.astype("float32").tolist(),
        "label": labels.tolist(),
        "split": ["test" if row >= 120 else "train" for row in range(160)],
    }
    kinds = Features(
        image=Image(),
        features=List(Value("float32"), length=6),
        label=ClassLabel(names=["a", "b"]),
        split=Value("string"),
    )
    Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / "images.parquet")
    return str(tmp_path / "images.parquet")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a quick study of digits has prepared."""
    folder = tmp_path_factory.mktemp("digits")
    prepare(Preparation("digits", 0, "digits", folder, quick=True))
    return folder


@pytest.mark.parametrize("name", ["digits", "images"])
def test_parts(name: str, images: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    prepare(Preparation(name, 0, {"digits": "digits", "images": images}[name], folder, quick=True))
    parts = open_parts(folder)
    sizes = {part: len(rows.labels) for part, rows in parts.items()}
    assert sizes == (
        {"train": 500, "validation": 100, "test": 600}
        if name == "digits"
        else {"train": 100, "validation": 20, "test": 40}
    )
    train = parts["train"].teacher_features
    torch.testing.assert_close(train.mean(0), torch.zeros_like(train[0]), atol=1e-4, rtol=0)
    assert all(len(rows.pixel_values) == len(rows.teacher_features) == len(rows.labels) for rows in parts.values())
    chosen = few(parts["train"], 3, seed=0)
    assert set(chosen.labels.bincount().tolist()) == {3}
    assert not torch.equal(chosen.pixel_values, few(parts["train"], 3, seed=1).pixel_values)


def test_the_probe_of_two_classes_has_a_logit_for_each() -> None:
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    labels = (features[:, 0] > 0).long()
    linear = probe(Part(torch.zeros(40, 1, 2, 2), features, labels), 1.0)
    assert linear.weight.shape == (2, 3)
    assert (linear(features).argmax(-1) == labels).float().mean() > 0.95


def test_hint_trains_student_and_regressor_and_is_the_student_in_evaluation() -> None:
    torch.manual_seed(0)
    student = ResNetForImageClassification(_small_models.resnet(channels=1, num_labels=3)).eval()
    model = Hinted(student, teacher_width=5)
    pixels, labels, features = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), torch.randn(4, 5)
    hinted, plain = model(pixels, labels, features), model(pixels, labels)
    expected = student(pixels, labels=labels)
    torch.testing.assert_close(plain["loss"], expected.loss)
    torch.testing.assert_close(plain["logits"], expected.logits)
    assert set(plain) == {"loss", "logits"}
    error = model.regressor(student.resnet(pixels).pooler_output.flatten(1)) - features
    hint = hinted["loss"] - plain["loss"]
    torch.testing.assert_close(hint, error.square().mean())
    hint.backward()
    for trained in (model.regressor, student.resnet):
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trained.parameters())


def test_the_tuned_teacher_is_the_frozen_one_but_for_adapters_and_head(digits: Path) -> None:
    train = few(open_parts(digits)["train"], 3, seed=0)
    args = arguments(TrainingArguments, steps=3, learning_rate=1e-2, seed=0, label_names=["labels"])
    trainer = lora_trainer(digits, train, args)
    before, head = as_tuned(train, trainer.model)
    first = {name: weight.clone() for name, weight in head.state_dict().items()}
    trainer.train()
    tuned = trainer.model.get_base_model()
    frozen = AutoModel.from_pretrained(digits / TEACHER)
    with torch.no_grad():
        torch.testing.assert_close(before.teacher_features, frozen.eval()(train.pixel_values).pooler_output.flatten(1))
    kept = {
        name.replace(".base_layer", ""): weight
        for name, weight in tuned.resnet.state_dict().items()
        if "lora_" not in name
    }
    assert set(kept) == set(frozen.state_dict())
    assert all(torch.equal(kept[name], weight) for name, weight in frozen.state_dict().items())
    adapted = {name.split(".lora_B")[0] for name, _ in tuned.named_parameters() if ".lora_B" in name}
    assert adapted == {f"resnet.{name}" for name, module in frozen.named_modules() if isinstance(module, nn.Conv2d)}
    after, head = as_tuned(train, trainer.model)
    assert not torch.allclose(after.teacher_features, before.teacher_features)
    assert any(not torch.equal(first[name], weight) for name, weight in head.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(head(after.teacher_features), tuned.eval()(train.pixel_values).logits)


@pytest.mark.parametrize("name", [rd.LORA, rd.HINT, rd.KD_LORA])
def test_a_run_of_a_seed_is_the_same_again(name: str, digits: Path) -> None:
    system = next(system for system in STUDY.systems if system.name == name)
    case = next(case for case in STUDY.cases if case.data == "digits")
    once = Run(case, system, system.points(case)[0], 0, "digits", digits, quick=True)
    found = [rd.run(once) for _ in range(2)]
    assert found[0] == found[1]
    assert 0 <= found[0].validation <= 1 and 0 <= found[0].test <= 1


def test_only_where_there_is_a_network_is_it_tuned() -> None:
    tuning = {rd.LORA, rd.KD_LORA}
    for case in STUDY.cases:
        missing = {system.name for system in STUDY.systems} - {system.name for system in STUDY.systems_of(case)}
        assert missing == (tuning if case.data == "images" else set())


def test_data_that_cannot_be_used(images: str) -> None:
    check("images", load(images))
    data = load(images)
    data["train"] = data["train"].remove_columns("features")
    with pytest.raises(ValueError, match="--data: found the columns image"):
        check("images", data)


@pytest.mark.slow
def test_every_system_runs(images: str, tmp_path: Path) -> None:
    result = reproduce(replace(STUDY, seeds=2), out=tmp_path, data={"images": images}, quick=True)
    assert set(result.cases) == {case.name for case in STUDY.cases}
    assert all(len(result.cases[case.name]) == len(STUDY.systems_of(case)) for case in STUDY.cases)
