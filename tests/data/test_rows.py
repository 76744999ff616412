"""Data sets whose rows get further columns."""

import pickle
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset
from transformers import default_data_collator

from hf_ext.data.rows import WithColumns


class _Plain(TorchDataset[dict[str, Any]]):
    """Rows that are read one by one, with attributes of their own."""

    builder_name = "plain"

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": float(range(3)[index])}


def _sources() -> list[Any]:
    table = Dataset.from_dict({"x": [0.0, 1.0, 2.0]})
    return [_Plain(), table, Subset(_Plain(), [0, 1, 2])]


@pytest.mark.parametrize("dataset", _sources(), ids=lambda dataset: type(dataset).__name__)
def test_rows_get_their_entry_of_every_column(dataset: Any) -> None:
    features = torch.arange(6.0).reshape(3, 2)
    rows = WithColumns(dataset, row=range(3), name=["a", "b", "c"], features=features)
    assert len(rows) == 3
    for index in (0, 2):
        row = rows[index]
        assert torch.equal(row.pop("features"), features[index])
        assert row == {"x": float(index), "row": index, "name": "abc"[index]}
    assert [(row["x"], row["row"], row["name"]) for row in rows.__getitems__([2, 0])] == [(2, 2, "c"), (0, 0, "a")]
    assert torch.equal(rows.__getitems__([2, 0])[0]["features"], features[2])


def test_negative_indices_count_from_the_end_in_every_column() -> None:
    assert WithColumns(_Plain(), row=range(3))[-1] == {"x": 2.0, "row": 2}


def test_rows_of_a_batch_are_read_at_once_where_the_data_set_can() -> None:
    class Counting(_Plain):
        batches: list[list[int]] = []

        def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
            self.batches.append(indices)
            return [self[index] for index in indices]

    rows = WithColumns(Counting(), row=range(3))
    batch = next(iter(DataLoader(rows, batch_size=2, collate_fn=default_data_collator)))
    assert batch["row"].tolist() == [0, 1] and rows.batches == [[0, 1]]


def test_a_column_of_the_same_name_is_replaced_in_the_rows_alone() -> None:
    table = Dataset.from_dict({"x": [1, 2]})
    assert WithColumns(table, x=[3, 4])[0] == {"x": 3} and table[0] == {"x": 1}


def test_any_name_can_be_that_of_a_column() -> None:
    assert WithColumns(_Plain(), self=range(3), dataset=range(3))[1] == {"x": 1.0, "self": 1, "dataset": 1}


def test_other_attributes_are_those_of_the_data_set() -> None:
    table = Dataset.from_dict({"x": [0.0, 1.0]})
    rows = WithColumns(table, row=range(2))
    assert rows.column_names == ["x"] and rows.features == table.features
    assert rows._fingerprint == table._fingerprint and rows.info is table.info
    assert WithColumns(_Plain(), row=range(3)).builder_name == "plain"
    with pytest.raises(AttributeError):
        rows.no_such_attribute  # noqa: B018


def test_pickled() -> None:
    again = pickle.loads(pickle.dumps(WithColumns(_Plain(), row=range(3))))
    assert again[2] == {"x": 2.0, "row": 2} and again.builder_name == "plain"


@pytest.mark.parametrize("values", [[], [0, 1], torch.zeros(4, 3)])
def test_other_lengths_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=rf"row: found {len(values)} values, allowed is one for each of 3 rows"):
        WithColumns(_Plain(), row=values)
