"""MoLA's studies: no row on two sides, every system runs on every kind of data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from hf_ext.data import load
from hf_ext.studies import Preparation, reproduce
from hf_ext.studies.mola.data import BUILDERS, check
from hf_ext.studies.mola.study import COMPARISON, STUDIES, TWD

NAMES = {"digits": "digits-rotated", "digits8": "digits-rotated-inverted", "domains": "digits-domains"}


@pytest.fixture
def images(tmp_path: Path) -> str:
    """96 pictures of two classes in two styles, each of another grey."""
    rows = {
        "image": [np.full((8, 8, 3), 2 * row, dtype=np.uint8) for row in range(96)],
        "label": [row % 2 for row in range(96)],
        "domain": [row // 2 % 2 for row in range(96)],
        "split": ["test" if row >= 64 else "train" for row in range(96)],
    }
    names = {"label": ClassLabel(names=["dog", "cat"]), "domain": ClassLabel(names=["photo", "sketch"])}
    features = Features(image=Image(), split=Value("string"), **names)
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "images.parquet")
    return str(tmp_path / "images.parquet")


@pytest.fixture
def text(tmp_path: Path) -> str:
    """72 texts of two tasks, each with a word of its own."""
    words = [chr(97 + row // 6) + chr(97 + row % 6) * 3 for row in range(72)]
    rows = {
        "text": [f"{word} is {'good' if row % 2 else 'bad'}" for row, word in enumerate(words)],
        "task": [("mood", "topic")[row // 2 % 2] for row in range(72)],
        "label_name": [("yes", "no")[row % 2] for row in range(72)],
        "split": ["test" if row >= 48 else "train" for row in range(72)],
    }
    Dataset.from_dict(rows).to_parquet(tmp_path / "text.parquet")
    return str(tmp_path / "text.parquet")


@pytest.fixture
def prepare(images: str, text: str, tmp_path: Path) -> Callable[[str], DatasetDict]:
    def make(name: str) -> DatasetDict:
        given = {"images": images, "text": text}.get(name) or NAMES[name]
        return BUILDERS[name](Preparation(name, 3, given, tmp_path, quick=True)).data

    return make


def _inputs(data: DatasetDict, split: str) -> list[bytes]:
    rows = data[split].with_format("numpy")[:]
    return [np.ascontiguousarray(row).tobytes() for row in rows.get("pixel_values", rows.get("input_ids"))]


@pytest.mark.parametrize("name", BUILDERS)
def test_no_row_is_on_two_sides(name: str, prepare: Callable[[str], DatasetDict]) -> None:
    data = prepare(name)
    assert set(data) == {"train", "validation", "test"}
    seen = [set(_inputs(data, split)) for split in ("train", "validation", "test")]
    sizes = [len(found) for found in seen]
    assert all(sizes) and len(set.union(*seen)) == sum(sizes)


def test_an_image_is_on_one_side_in_all_its_tasks(prepare: Callable[[str], DatasetDict]) -> None:
    data = prepare("digits")

    def images(split: str) -> set[bytes]:
        """Every image turned back to how it was written."""
        rows = data[split].with_format("numpy")[:]
        turned = (
            np.rot90(image[0], -task) for image, task in zip(rows["pixel_values"], rows["task_ids"], strict=True)
        )
        return {np.ascontiguousarray(image).tobytes() for image in turned}

    assert not images("train") & images("validation")


@pytest.mark.parametrize(("name", "column"), [("images", "domain"), ("text", "label_name")])
def test_a_table_without_a_column_is_refused(name: str, column: str, tmp_path: Path) -> None:
    Dataset.from_dict({"image": [1], "text": ["a"], "label": [0]}).to_parquet(tmp_path / "table.parquet")
    given = Preparation(name, 0, str(tmp_path / "table.parquet"), tmp_path)
    with pytest.raises(ValueError, match=rf"--data: found the columns image, text, label in {name}.*{column}"):
        BUILDERS[name](given)


def test_data_are_checked_before_anything_is_trained(images: str, text: str, tmp_path: Path) -> None:
    for name, given in {**NAMES, "images": images, "text": text}.items():
        check(name, load(given))
    pictures, digits = load(images), load("digits-rotated")
    plain = pictures.cast_column("domain", Value("int64"))
    train = pictures.filter(lambda row: row["split"] == "train")
    mixed = DatasetDict({**digits, "train": digits["train"].shuffle(seed=0)})
    for name, data, message in (
        ("digits", load(text), "found no rows in the split pretrain of digits, allowed are pixel_values"),
        ("digits", DatasetDict({**digits, "test": load(text)["train"]}), "found text, .* in the split test of digits"),
        ("digits8", digits.cast_column("task_ids", Value("int64")), "as the column task_ids of digits8, allowed are"),
        ("digits", mixed, "found other task_ids in the split train of digits"),
        ("images", plain, "as the column domain of images, allowed are class labels"),
        ("images", train, r"found the splits \['train'\] in images, allowed are both train and test"),
    ):
        with pytest.raises(ValueError, match=message):
            check(name, data)
    with pytest.raises(ValueError, match="found the columns text, task, label_name, split in images"):
        reproduce(COMPARISON, out=tmp_path / "out", data={"images": text})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["images", "text"])
def test_splits_may_be_splits(name: str, images: str, text: str, tmp_path: Path) -> None:
    """In place of a column `split`, as is usual on the Hub. (Word pieces are learned anew: their ids may differ.)"""
    given = {"images": images, "text": text}[name]
    whole = load(given)["train"]
    parts = {
        part: whole.filter(lambda row, part=part: row["split"] == part).remove_columns("split")
        for part in ("train", "test")
    }
    DatasetDict(parts).save_to_disk(str(tmp_path / "split"))
    check(name, load(str(tmp_path / "split")))
    one, two = (
        BUILDERS[name](Preparation(name, 3, place, tmp_path, quick=True)).data
        for place in (given, str(tmp_path / "split"))
    )
    assert set(one) == set(two)
    for split, rows in one.items():
        assert (rows["labels"][:] == two[split]["labels"][:]).all()
        assert (rows["task_ids"][:] == two[split]["task_ids"][:]).all()


@pytest.mark.slow
def test_every_system_runs_on_all_data(images: str, text: str, tmp_path: Path) -> None:
    result = reproduce(COMPARISON, out=tmp_path, data={"images": images, "text": text}, quick=True, seeds=1)
    for case in COMPARISON.cases:
        systems = result.cases[case.name]
        assert ("Poly" in systems) == (case.data != "images")
        assert len(systems) == len(COMPARISON.systems) - ("Poly" not in systems)
        for system in systems.values():
            assert 0 <= system.test[0] <= 1 and set(system.details) >= set(systems["MoLA-Grad"].details)
        assert "routing distance" in systems["MoLA-Router"].details


@pytest.mark.slow
def test_weight_and_temperature_of_twd_are_tuned(tmp_path: Path) -> None:
    tuned = next(system for system in TWD.systems if "tuned" in system.name)
    grid = tuned.points(TWD.cases[0])
    assert {point["twd_weight"] for point in grid} >= {0.03, 1.0} and len({p["twd_temperature"] for p in grid}) > 1
    result = reproduce(replace(TWD, cases=TWD.cases[:1]), out=tmp_path, quick=True, seeds=1)
    assert result.cases["4 tasks"][tuned.name].hyper_parameters in grid


def test_studies_are_told_apart() -> None:
    assert len({study.name for study in STUDIES}) == len(STUDIES)
    assert all(study.protocol and study.seeds >= 5 for study in STUDIES)
