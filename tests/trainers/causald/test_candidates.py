"""Rows with candidates that stay the same, and the bank of histories."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_ext.data.rows import WithColumns
from hf_ext.trainers.causald import CandidateRows
from hf_ext.trainers.causald.bank import draw_bank
from hf_ext.trainers.causald.candidates import check_rows, fingerprint, targets_of


class Rows:
    """Histories of users as `NextItems` gives them: user u has u + 1 rows."""

    def __init__(self, users: int = 6, length: int = 5, num_items: int = 9) -> None:
        rng = np.random.default_rng(0)
        self.users = np.repeat(np.arange(users), np.arange(users) + 1)
        self.input_ids = rng.integers(1, num_items + 1, (len(self.users), length))
        self.input_ids[:, 0] = 0
        self.targets = rng.integers(1, num_items + 1, len(self.users))

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self.input_ids[row], "labels": self.targets[row]}


def test_candidates_are_the_next_item_and_others() -> None:
    rows = CandidateRows(Rows(), 9, 5)
    for row, target in zip(rows, rows.targets, strict=True):  # a plain iteration ends
        assert row["candidate_ids"].dtype == torch.int64 and row["candidate_ids"].shape == (5,)
        assert row["labels"] == 0 and row["candidate_ids"][0] == target
        assert set(row["candidate_ids"][1:].tolist()) <= {*range(1, 10)} - {target}


def test_others_are_uniform() -> None:
    class Many(Rows):
        def __init__(self) -> None:
            self.input_ids, self.targets = np.ones((4000, 2), dtype=int), np.full(4000, 3)

        def __len__(self) -> int:
            return 4000

    drawn = np.stack([row["candidate_ids"][1:] for row in CandidateRows(Many(), 5, 6).__getitems__(range(4000))])
    shares = np.bincount(drawn.ravel(), minlength=6) / drawn.size
    assert shares[[0, 3]].tolist() == [0, 0] and shares[[1, 2, 4, 5]] == pytest.approx([0.25] * 4, abs=0.015)
    pairs = np.bincount(5 * drawn[:, 0] + drawn[:, 1], minlength=36)  # neighbours know nothing of each other
    assert pairs[pairs > 0].min() / 4000 > 0.05


def test_candidates_depend_on_seed_and_row_alone() -> None:
    def drawn(rows: CandidateRows, order: list[int]) -> dict[int, list[int]]:
        return {
            index: row["candidate_ids"].tolist() for index, row in zip(order, rows.__getitems__(order), strict=True)
        }

    rows = CandidateRows(Rows(), 9, 5)
    forwards, backwards = list(range(21)), list(range(20, -1, -1))
    assert drawn(rows, forwards) == drawn(rows, backwards) == drawn(pickle.loads(pickle.dumps(rows)), forwards)
    assert drawn(rows, [3])[3] == rows[3]["candidate_ids"].tolist() == rows[3 - 21]["candidate_ids"].tolist()
    assert drawn(rows, forwards) != drawn(CandidateRows(Rows(), 9, 5, seed=1), forwards)


def test_rows_keep_what_they_have() -> None:
    """Further columns of a user, attributes of the data set, and what is known of a row's number."""
    plain = Rows()
    rows = CandidateRows(WithColumns(plain, domain_ids=range(21)), 9, 5, effect=np.arange(42.0).reshape(21, 2))
    assert rows.users is plain.users and rows[4]["domain_ids"] == 4 and rows[4]["effect"].tolist() == [8, 9]
    assert rows.with_columns(more=np.arange(21))[4].keys() == rows[4].keys() | {"more"}
    (batch,) = DataLoader(rows, batch_size=21)
    assert batch["candidate_ids"].dtype == torch.int64 and batch["effect"].shape == (21, 2)


def test_a_fingerprint_is_of_histories_and_next_items() -> None:
    rows, other = Rows(), Rows()
    assert fingerprint(rows) == fingerprint(other)
    other.input_ids[20, 4] += 1
    assert fingerprint(rows) != fingerprint(other)
    other = Rows()
    other.targets[0] += 1
    assert fingerprint(rows) != fingerprint(other)


def test_next_items_of_rows_that_do_not_say_them() -> None:
    rows = Rows()
    assert targets_of([rows[row] for row in range(21)]).tolist() == targets_of(rows).tolist() == rows.targets.tolist()


@pytest.mark.parametrize(
    ("rows", "items", "message"),
    [
        (iter([]), 9, "train_dataset: found a list_iterator without a length"),
        ([{"labels": 1}], 9, "train_dataset: found rows without input_ids, allowed are rows with both"),
        ([{"input_ids": [1], "labels": [1, 2]}], 9, "train_dataset: found rows with a next item at every position"),
        ([{"input_ids": [1], "labels": 1, "candidate_ids": [1]}], 9, "train_dataset: found rows with candidate_ids"),
        ([{"input_ids": [1], "labels": 1}], 4, "causald_num_candidates: found 5, allowed are at most 4, the items"),
    ],
)
def test_rows_that_can_get_no_candidates(rows: Any, items: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_rows(rows, items, 5)


# ------------------------------------------------------------------------------------------------ the bank
def test_a_bank_has_one_history_of_each_user() -> None:
    rows = Rows()
    bank = draw_bank(rows, 6)
    owners = [int(rows.users[(rows.input_ids == history).all(axis=1)][0]) for history in bank.input_ids]
    assert sorted(owners) == list(range(6)) and bank.prior.tolist() == [1 / 6] * 6
    assert not np.array_equal(bank.input_ids, draw_bank(rows, 6, seed=1).input_ids)
    np.testing.assert_array_equal(bank.input_ids, draw_bank(rows, 6).input_ids)


def test_a_bank_of_interactions_has_more_of_active_users() -> None:
    rows = Rows(users=40, num_items=1000)

    def activity(method: str) -> float:
        owners = [
            rows.users[(rows.input_ids == history).all(axis=1)][0]
            for seed in range(20)
            for history in draw_bank(rows, 10, method=method, seed=seed).input_ids
        ]
        return float(np.mean(owners))

    assert activity("interactions") > 23 > activity("users")  # expected: 26 and 19.5


def test_clusters_count_as_the_share_of_their_users() -> None:
    rows = Rows(users=12)
    rows.input_ids = np.where(rows.users[:, None] < 9, [[0, 1, 2, 1, 2]], [[0, 7, 8, 7, 8]])
    bank = draw_bank(rows, 2, method="kmeans")
    order = np.argsort(bank.prior)
    assert bank.prior[order].tolist() == [0.25, 0.75]
    assert bank.input_ids[order].tolist() == [[0, 7, 8, 7, 8], [0, 1, 2, 1, 2]]


def test_banks_that_cannot_be_drawn() -> None:
    rows = Rows()
    with pytest.raises(ValueError, match="causald_bank_size: found 7, allowed are at most 6, the users with"):
        draw_bank(rows, 7)
    with pytest.raises(ValueError, match="causald_bank_size: found 22, allowed are at most 21, the training rows"):
        draw_bank(rows, 22, method="interactions")
    with pytest.raises(ValueError, match="causald_bank_method: found 'users' and a train_dataset that does not say"):
        draw_bank([rows[row] for row in range(21)], 2)
    assert len(draw_bank([rows[row] for row in range(21)], 2, method="interactions").input_ids) == 2
