"""Which rows are to be forgotten, in every form that they may be told in."""

from collections import deque
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset

from hf_ext.data.rows import WithColumns
from hf_ext.trainers.tarf.forget_rows import split_rows


class Rows:
    """A sequence of a user's own."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]


pandas = pytest.importorskip("pandas")
MASK = np.arange(6) >= 4


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict({"row": range(6), "labels": [0, 1, 2, 3, 2, 1]})


@pytest.mark.parametrize(
    "forget",
    [
        *(MASK, MASK.tolist(), tuple(MASK.tolist()), list(MASK), torch.tensor(MASK), pandas.Series(MASK)),
        *([4, 5], (5, 4), {4, 5}, range(4, 6), list(np.array([4, 5])), np.array([4, 5], dtype=np.uint8)),
        *(torch.tensor([5, 4]), pandas.Series([4, 5], index=[7, 9]), pandas.Index([4, 5]), [np.int32(4), 5]),
        *(
            pandas.Series(MASK, dtype=object),
            pandas.Series(MASK, dtype="boolean"),
            MASK.astype(object),
            pa.array(MASK),
        ),
        *(dict.fromkeys([4, 5]).keys(), deque([4, 5]), [torch.tensor(4), np.array(5)], [4, 4, 5], Rows([5, 4])),
        pa.array(MASK),
    ],
    ids=lambda value: f"{type(value).__name__} {list(value)}",
)
def test_masks_and_indices(rows: Dataset, forget: Any) -> None:
    remaining, forgotten = split_rows(rows, forget)
    assert (remaining["row"][:], forgotten["row"][:]) == ([0, 1, 2, 3], [4, 5])
    remaining, forgotten = split_rows(list(rows), forget)
    assert [row["row"] for row in remaining] == [0, 1, 2, 3] and [row["row"] for row in forgotten] == [4, 5]


def test_a_column_of_the_data(rows: Dataset) -> None:
    marked = rows.add_column("gone", MASK.tolist())
    assert split_rows(marked, marked["gone"])[1]["row"][:] == [4, 5]


def test_data_sets_are_data_sets(rows: Dataset) -> None:
    subset = torch.utils.data.Subset(list(rows), [0, 1])
    for given in (rows.select([0]), list(rows), subset, rows.to_iterable_dataset(), Rows(list(rows)), None):
        assert split_rows(rows, given) == (rows, given)


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        (MASK[:5], "found a mask of 5 rows, 1 of them to be forgotten, allowed is one for each of the 6 rows"),
        ([True, False], "found a mask of 2 rows, 1 of them to be forgotten"),
        ([4.0, 5.0], "found a list of 2 float64 values, allowed are a data set, a mask"),
        (np.array([np.nan]), "found a ndarray of 1 float64 values"),
        (["4"], "found a list of 1 <U1 values"),
        ("45", r"found a str of shape \(\)"),
        ([True, 4], "found a list of True, False and other values"),
        ([[4], [5]], r"found a list of shape \(2, 1\)"),
        ([[4], [5, 1]], r"found a list of shape \(\)"),
        ({"row": [4]}, r"found a dict of shape \(\)"),
        (4, r"found a int of shape \(\)"),
        ([None], "found a list of 1 object values"),
        (pandas.DataFrame({"row": [4]}), r"found a DataFrame of shape \(1, 1\)"),
        ([6], r"found rows 6 to 6, allowed are 0 to 5 \(1 would be forgotten\)"),
        ([-1, 2], "found rows -1 to 2, allowed are 0 to 5"),
        (np.array([2**63], dtype=np.uint64), "found rows 9223372036854775808 to 9223372036854775808"),
        ([torch.tensor(True), 4], "found a list of True, False and other values"),
        (np.ma.array(MASK, mask=~MASK), "found a MaskedArray of True, False and other values"),
        (pandas.Series([True, None] * 3, dtype="boolean"), "found a Series of True, False and other values"),
        ((row for row in [4, 5]), r"found a generator of shape \(\)"),
        (torch.tensor([4.0, 5.0], requires_grad=True), "found a Tensor of 2 float32 values"),
        (torch.tensor([4.0], dtype=torch.bfloat16), r"found a Tensor of shape \(\)"),
        ([0, 1, 0, 0], "found 4 integers, all 0 or 1, which as indices would forget 2 rows"),  # of fewer rows, too
        ([0, 0, 0, 0, 1, 1], "found 6 integers, all 0 or 1, which as indices would forget 2 rows"),
    ],
)
def test_what_could_be_taken_for_something_else(rows: Dataset, forget: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"forget_dataset: {message}"):
        split_rows(rows, forget)


def test_nothing_would_remain(rows: Dataset) -> None:
    with pytest.raises(ValueError, match="train_dataset: found all 6 rows to be forgotten"):
        split_rows(rows, [True] * 6)


def test_a_stream_has_no_rows(rows: Dataset) -> None:
    with pytest.raises(ValueError, match=r"found a list with a stream as .*, allowed is a data set .* with tarf_sel"):
        split_rows(rows.to_iterable_dataset(), [1])


# ------------------------------------------------------------------------------------------------ a column
def _forgotten(column: list[Any], values: Any, names: list[str] | None = None) -> list[int]:
    data = Dataset.from_dict({"row": range(len(column)), "c": column})
    data = data if names is None else data.cast_column("c", ClassLabel(names=names))
    found: list[int] = split_rows(data.with_format("torch"), None, column="c", values=values)[1]["row"][:].tolist()
    return found


@pytest.mark.parametrize(
    ("column", "values", "names", "expected"),
    [
        (range(12), ["2"], sorted(map(str, range(12))), [4]),  # the name, not the class of id 2, which is called 10
        ([0, 1, 2], ["1"], ["10", "2", "1"], [2]),
        ([0, 1, 2], ["0"], ["cat", "dog", "newt"], [0]),  # an id, where no class has that name
        ([0, 1, 2], [1], ["cat", "dog", "newt"], [1]),
        ([0, 1, 2, 1], ["dog", "newt"], ["cat", "dog", "newt"], [1, 2, 3]),
        ([0, 1, 2, 1], "dog", ["cat", "dog", "newt"], [1, 3]),
        ([0, 1, 2, 10], ["1"], None, [1]),
        ([0.0, 1.0, 2.5], ["1", 2.5], None, [1, 2]),
        (["1", "10", "01"], ["1"], None, [0]),
        (["no", "yes", None], ["yes"], None, [1]),
        ([True, False, True], ["true"], None, [0, 2]),
        ([2**53, 2**53 + 1, 2**53 + 2], [str(2**53 + 1)], None, [1]),  # which no float is
        ([0, 1, 2], np.array([1, 2]), None, [1, 2]),
        ([True, False, True], None, None, [0, 2]),
        ([0, 1, 1], None, None, [1, 2]),
    ],
)
def test_values_of_a_column(column: Any, values: Any, names: list[str] | None, expected: list[int]) -> None:
    assert _forgotten(list(column), values, names) == expected


@pytest.mark.parametrize(
    ("column", "values", "names", "message"),
    [
        ([0.0, float("nan")], None, None, "tarf_forget_value: found none for values such as 0.0 in 'c'"),
        (["no", "yes"], None, None, "tarf_forget_value: found none for values such as 'no'"),
        ([True, None], None, None, "tarf_forget_value: found none for values such as None"),
        ([0, 1, 2], None, None, "tarf_forget_value: found none for values such as 2"),
        ([0, 1], None, ["keep", "forget"], "tarf_forget_value: found none for class labels in 'c'"),
        ([0, 0], None, None, "tarf_forget_value: found 'True' in no row of 'c'"),
        ([0, 1], ["dog", "horse"], ["cat", "dog"], "tarf_forget_value: found 'horse' in no row of 'c'"),
        ([0, 1, -1], ["horse"], ["cat", "dog"], "tarf_forget_value: found 'horse' in no row of 'c'"),  # unlabelled
        ([0, 0], ["dog"], ["cat", "dog"], "tarf_forget_value: found 'dog' in no row of 'c'"),
        ([0, 1, 2], [1], ["10", "2", "1"], "tarf_forget_value: found 1, the id of class '2' and the name of class 2"),
        ([0, 1], ["x"], None, "tarf_forget_value: found 'x' in no row of 'c'"),
    ],
)
def test_values_that_say_nothing_certain(
    column: list[Any], values: Any, names: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _forgotten(column, values, names)


@pytest.mark.parametrize("kind", [list, Rows, lambda rows: torch.utils.data.Subset(rows, range(3))])
def test_a_column_of_rows_that_are_no_table(kind: Any) -> None:
    rows = kind([{"c": value, "row": row} for row, value in enumerate([0, 1, 0])])
    for values in (["1"], None):
        remaining, forgotten = split_rows(rows, None, column="c", values=values)
        assert ([row["row"] for row in remaining], [row["row"] for row in forgotten]) == ([0, 2], [1])
    with pytest.raises(ValueError, match="tarf_forget_column: found 'd', allowed is a key of every row"):
        split_rows(rows, None, column="d")


def test_columns_that_were_added_to_a_table(rows: Dataset) -> None:
    """Are known, and stay with the rows."""
    data = WithColumns(rows, gone=MASK, mine=range(6))
    for forget, column in ((MASK, None), (None, "gone")):
        remaining, forgotten = split_rows(data, forget, column=column)
        assert ([row["mine"] for row in remaining], [row["mine"] for row in forgotten]) == ([0, 1, 2, 3], [4, 5])
