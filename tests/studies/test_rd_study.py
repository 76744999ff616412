"""RD's study: its rows, its probe, every system runs on all data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from hf_ext.data import load
from hf_ext.studies import Preparation, reproduce
from hf_ext.studies.rd import STUDY, _probe
from hf_ext.studies.rd_data import Part, check, few, open_parts, prepare


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
    probe = _probe(Part(torch.zeros(40, 1, 2, 2), features, labels), 1.0)
    assert probe.weight.shape == (2, 3)
    assert (probe(features).argmax(-1) == labels).float().mean() > 0.95


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
    assert all(len(systems) == len(STUDY.systems) for systems in result.cases.values())
