"""FER's study: what rows and labels a run gets, what texts say in it, every system runs on all data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_ext.data import load
from hf_ext.studies import Preparation, reproduce
from hf_ext.studies.fer.data import TEXTS, Part, check, open_parts, prepare, texts, training_part
from hf_ext.studies.fer.study import STUDY


@pytest.fixture
def faces(tmp_path: Path) -> str:
    """140 rows of features of seven classes."""
    rng = np.random.default_rng(0)
    rows = {
        "features": rng.normal(3.0, 5.0, size=(140, 12)).astype("float32").tolist(),
        "label": [row % 7 for row in range(140)],
        "split": ["test" if row >= 112 else "train" for row in range(140)],
    }
    features = Features(
        features=List(Value("float32"), length=12),
        label=ClassLabel(names=list(TEXTS["faces"])),
        split=Value("string"),
    )
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "faces.parquet")
    return str(tmp_path / "faces.parquet")


@pytest.mark.parametrize("name", ["digits", "faces"])
def test_parts_are_apart_and_standardised_by_the_training_rows(name: str, faces: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    prepare(Preparation(name, 0, {"digits": "digits", "faces": faces}[name], folder))
    parts, names = open_parts(folder)
    assert names == list(TEXTS[name])
    train = parts["train"].features
    varying = train.std(0) > 0.1
    torch.testing.assert_close(train.mean(0), torch.zeros_like(train[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(train.std(0)[varying], torch.ones(int(varying.sum())), atol=0.02, rtol=0)
    if name == "faces":
        assert {part: len(rows.labels) for part, rows in parts.items()} == {"train": 94, "validation": 18, "test": 28}
        assert len(torch.cat([rows.features for rows in parts.values()]).unique(dim=0)) == 140


def test_few_labels_and_wrong_ones() -> None:
    part = Part(torch.arange(200.0)[:, None], torch.arange(200) % 10)
    few = training_part(part, 0, per_class=3, wrong=0.0)
    assert few.labels.bincount().tolist() == [3] * 10
    assert torch.equal(few.labels, few.features[:, 0].long() % 10)
    noisy = training_part(part, 0, per_class=None, wrong=0.4)
    assert (noisy.labels != noisy.features[:, 0].long() % 10).sum() == 80
    assert not torch.equal(few.features, training_part(part, 1, per_class=3, wrong=0.0).features)
    assert torch.equal(part.labels, torch.arange(200) % 10)


def test_shuffled_texts_leave_no_class_its_own() -> None:
    names = list(TEXTS["faces"])
    prompts, own = texts("faces", names, "texts", 0)
    assert "a neutral facial expression" in prompts[names.index("neutral")] and own.shape == (7, 384)
    for seed in range(20):
        shuffled = texts("faces", names, "shuffled", seed)[1]
        assert not (shuffled == own).all(dim=1).any()
        assert torch.equal(shuffled.sort(dim=0).values, own.sort(dim=0).values)
    drawn = [texts("faces", names, "random", seed)[1] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_data_that_cannot_be_used(faces: str) -> None:
    check("faces", load(faces))
    data = load(faces)
    data["train"] = data["train"].cast_column("label", ClassLabel(names=list("abcdefg")))
    with pytest.raises(ValueError, match="--data: found the classes a, b"):
        check("faces", data)


@pytest.mark.slow
def test_every_system_runs(faces: str, tmp_path: Path) -> None:
    short = replace(STUDY, seeds=2)
    result = reproduce(short, out=tmp_path, data={"faces": faces}, quick=True)
    assert set(result.cases) == {case.name for case in STUDY.cases}
    assert all(len(systems) == len(STUDY.systems) for systems in result.cases.values())
