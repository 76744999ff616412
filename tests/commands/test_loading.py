"""Data from a user's tables: the same class has the same number in every split."""

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from hf_ext.commands.loading import _with_labels


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


def test_given_class_labels_stay(tmp_path: Path) -> None:
    rows = _splits(["b", "a"], ["a", "a"]).class_encode_column("label")
    assert _with_labels(DatasetDict(train=rows["train"], eval=rows["train"]), "labels")[1] == ["a", "b"]
