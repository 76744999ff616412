"""The four unlearning tasks of a data set with fine and coarse labels."""

from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_ext.data import mismatch_split

# man, woman, boy are people; cat, dog are animals
FINE, COARSE = ("man", "woman", "boy", "cat", "dog"), ("people", "animals")
ABOVE = np.array([0, 0, 0, 1, 1])


@pytest.fixture
def data() -> Dataset:
    fine = np.arange(25) % 5
    features = Features(x=Value("int64"), fine=ClassLabel(names=list(FINE)), coarse=ClassLabel(names=list(COARSE)))
    return Dataset.from_dict({"x": np.arange(25), "fine": fine, "coarse": ABOVE[fine]}, features=features)


@pytest.mark.parametrize(
    ("task", "labels", "hidden", "affected", "groups"),
    [
        ("all_matched", FINE, [], [], 0),
        ("target_mismatch", FINE, ["man", "woman"], [], 2),
        ("model_mismatch", COARSE, [], ["man", "woman"], 0),
        ("data_mismatch", COARSE, ["man", "woman"], [], 1),
    ],
)
def test_tasks(
    task: Any, labels: tuple[str, ...], hidden: list[str], affected: list[str], groups: int, data: Dataset
) -> None:
    split = mismatch_split(data.with_format("torch"), "fine", "coarse", "boy", task=task)
    assert set(split.forget["fine"][:].tolist()) == {2} and len(split.forget) == 5
    assert len(split.remaining) == 20 and 2 not in split.remaining["fine"][:]
    assert split.remaining.features["labels"].names == list(labels)
    source = "fine" if labels == FINE else "coarse"
    assert split.remaining["labels"][:].tolist() == split.remaining[source][:].tolist()
    names = np.array(FINE)[split.remaining["fine"][:].numpy()]
    assert sorted(set(names[split.hidden])) == sorted(hidden)
    assert sorted(set(names[split.affected])) == sorted(affected)
    assert split.num_hidden_groups == groups
    assert len(split.retain) == 20 - 5 * len(hidden) and not split.hidden[: len(names)][~np.isin(names, hidden)].any()
    concept = {"boy", *hidden}
    test = data.select(range(7))
    assert split.in_concept(test).tolist() == [FINE[i % 5] in concept for i in range(7)]
    assert split.labelled(test)["labels"][:] == test[source][:]
    assert split.remaining.format["type"] == "torch"


def test_a_column_named_labels_makes_way(data: Dataset) -> None:
    split = mismatch_split(data.rename_column("fine", "labels"), "labels", "coarse", [2, 3], task="model_mismatch")
    assert split.remaining["labels"][:] == split.remaining["coarse"][:]
    assert len(split.forget) == 10
    same = mismatch_split(data.rename_column("fine", "labels"), "labels", "coarse", 0, task="all_matched")
    assert same.forget["labels"][:] == [0] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "other"}, "task: found 'other', allowed are all_matched, target_mismatch"),
        ({"fine_column": "nope"}, "fine_column: found 'nope', allowed are"),
        ({"coarse_column": "x", "fine_column": "coarse", "given": 0}, "coarse_column: found classes of 'coarse' in"),
        ({"given": "bird"}, r"given: found \['bird'\], allowed are classes of 'fine'"),
        ({"given": [7]}, r"given: found \[7\], allowed are classes that occur"),
        ({"given": []}, r"given: found \[\], allowed are classes that occur"),
        ({"given": list(FINE)}, "given: found all classes of 'fine'"),
    ],
)
def test_what_makes_no_task_is_refused(options: dict[str, Any], message: str, data: Dataset) -> None:
    usual = {"fine_column": "fine", "coarse_column": "coarse", "given": "boy", "task": "all_matched"}
    with pytest.raises(ValueError, match=message):
        mismatch_split(data, **{**usual, **options})
