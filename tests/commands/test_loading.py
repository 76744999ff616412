"""Data from a user's tables: the same class has the same number in every split."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image

from hf_ext.commands.loading import _with_labels
from hf_ext.data import load


def _splits(train: list[str], evaluated: list[str]) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict({"label": train}), eval=Dataset.from_dict({"label": evaluated}))


def test_classes_have_the_same_numbers_in_both_splits() -> None:
    splits, names = _with_labels(_splits(["b", "a", "c", "a"], ["c", "b"]), "labels")
    assert names == ["a", "b", "c"]
    assert splits["train"]["labels"][:] == [1, 0, 2, 0] and splits["eval"]["labels"][:] == [2, 1]
    assert splits["eval"].features["labels"].names == names


def test_whole_numbers_are_classes_too() -> None:
    rows = DatasetDict(train=Dataset.from_dict({"labels": [7, 3, 3]}), eval=Dataset.from_dict({"labels": [3, 7]}))
    splits, names = _with_labels(rows, "labels")
    assert sorted(names) == ["3", "7"]
    numbers = [names.index("3"), names.index("7")]
    assert splits["eval"]["labels"][:] == numbers


def test_a_class_of_the_evaluation_alone() -> None:
    with pytest.raises(ValueError, match="labels: found d in the split to evaluate on alone, allowed are a, b"):
        _with_labels(DatasetDict(_splits(["a", "b"], ["d"])).rename_column("label", "labels"), "labels")


def test_given_class_labels_stay(caplog: pytest.LogCaptureFixture) -> None:
    rows = _splits(["b", "a"], ["a", "a"]).class_encode_column("label")
    assert _with_labels(DatasetDict(train=rows["train"], eval=rows["train"]), "labels")[1] == ["a", "b"]
    # also one that happens not to occur
    classes = ClassLabel(names=["a", "b", "c"])
    few = DatasetDict({name: rows.cast_column("label", classes) for name, rows in _splits(["b", "a"], ["c"]).items()})
    assert _with_labels(few, "labels")[1] == classes.names
    assert "found c in the split to evaluate on alone" in caplog.text


def test_a_class_folder_of_another_name_in_the_split_to_evaluate_on(tmp_path: Path) -> None:
    for place in ("train/angry", "train/happy", "test/anger", "test/happy"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / place / f"{number}.png")
    rows = load(str(tmp_path))
    with pytest.raises(
        ValueError, match="label: found anger in the split to evaluate on alone, allowed are angry, ha"
    ):
        _with_labels(DatasetDict(train=rows["train"], eval=rows["test"]), "labels")


def test_numbers_that_mean_other_classes() -> None:
    rows = _splits(["b", "a"], ["a", "b"])
    eval_ = rows["eval"].cast_column("label", ClassLabel(names=["b", "a"]))
    train = rows["train"].cast_column("label", ClassLabel(names=["a", "b"]))
    with pytest.raises(ValueError, match=r"label: found ClassLabel.* in the split to evaluate on, allowed is ClassL"):
        _with_labels(DatasetDict(train=train, eval=eval_), "labels")


def test_one_class_is_none(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "happy").mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / split / "happy" / f"{number}.png")
    rows = load(str(tmp_path))
    with pytest.raises(ValueError, match=r"label_column: found no column 'labels', .* two or more folders"):
        _with_labels(DatasetDict(train=rows["train"], eval=rows["test"]), "labels")
    with pytest.raises(ValueError, match=r"label: found the classes \['a'\], allowed are two or more"):
        _with_labels(_splits(["a", "a"], ["a"]), "labels")


@pytest.mark.parametrize("part", ["train", "eval"])
def test_rows_without_a_class(part: str) -> None:
    rows = DatasetDict(_splits(["a", "b", "b"], ["a", "b", "b"]))
    rows[part] = Dataset.from_dict({"label": ["a", "b", None]})
    with pytest.raises(ValueError, match="label: found no class in 1 of 3 rows, allowed is one in each"):
        _with_labels(rows, "labels")
    classes = ClassLabel(names=["a", "b"])
    numbers = {name: Dataset.from_dict({"label": [0, 1, 1]}).cast_column("label", classes) for name in rows}
    numbers[part] = Dataset.from_dict({"label": [0, 1, -1]}).cast_column("label", classes)
    with pytest.raises(ValueError, match="label: found no class in 1 of 3 rows"):
        _with_labels(DatasetDict(numbers), "labels")
