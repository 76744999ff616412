"""Ids and titles of items, and the file that they travel in."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem
from hf_ext.models.recsys.items_recsys import ItemTable


def test_a_table() -> None:
    table = ItemTable(np.array([7, 3, 2**60]), ["seven", "three", "many"])
    assert table.ids == [7, 3, 2**60] and type(table.ids[0]) is int and len(table) == 3
    assert table.rows([3, np.int64(7), 7]).tolist() == [2, 1, 1] and table.rows([]).dtype == np.int64
    assert table.title(2) == "three" and ItemTable(np.array(["a", "b"])).title(2) == "b"
    assert ItemTable([7, 3], [None, "three"]).titles == ["7", "three"]
    with pytest.raises(
        ValueError, match=r"item ids: found 1, '7', 2, None, 4, \.\.\., allowed are those of the model's 3"
    ):
        table.rows([1, "7", 2, 3, None, 4, 5])


@pytest.mark.parametrize(
    ("ids", "titles", "message"),
    [
        ([1, "1"], None, "ids: found integers and text"),
        ([1, 2, 1], None, "ids: found 1 twice"),
        ([1, True], None, "ids: found True, allowed are integers"),
        ([1.0], None, "ids: found 1.0, allowed are integers"),
        ([None], None, "ids: found None"),
        ([2**63], None, "ids: found 9223372036854775808"),
        (["x" * 513], None, "ids: found text of 513 characters"),
        ([1, 2], ["one"], "titles: found 1 for 2 ids"),
        ([1, 2], ["one", 2], "titles: found 2, allowed is text"),
        ([1], ["x" * 3000], "titles: found text of 3000 characters"),
    ],
)
def test_tables_that_are_none(ids: Any, titles: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ItemTable(ids, titles)


def test_a_model_of_items() -> None:
    items = SimpleNamespace(ids=["a", "b", "c"], titles=["A", "B", "C"])
    model = SequentialRecommenderForNextItem.from_items(items, architecture="gru", hidden_size=4)
    assert model.config.num_items == 3 and model.items is not None and model.items.titles == ["A", "B", "C"]
    with pytest.raises(ValueError, match="ids: found 2 of them for a model with num_items=3"):
        model.set_items(SimpleNamespace(ids=["a", "b"], titles=None))
    with pytest.raises(ValueError, match="items: found list, allowed is what has ids and titles"):
        model.set_items(["a", "b", "c"])
    assert model.items.ids == ["a", "b", "c"]
    model.set_items(None)
    assert model.items is None


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    config = SequentialRecommenderConfig(num_items=3, hidden_size=4)
    model = SequentialRecommenderForNextItem(config)
    model.set_items(ItemTable([5, 6, 7], ["naïve \u2028 <b>", "二", "\ud800 \x00"]))
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_saved_and_loaded(saved: Path) -> None:
    loaded = SequentialRecommenderForNextItem.from_pretrained(saved)
    assert loaded.items.ids == [5, 6, 7] and loaded.items.titles == ["naïve \u2028 <b>", "二", "\ud800 \x00"]
    assert {path.name for path in saved.iterdir() if path.name.startswith(".")} == set()
    loaded.set_items(ItemTable(["a", "b", "c"]))
    loaded.save_pretrained(saved)
    assert SequentialRecommenderForNextItem.from_pretrained(saved).items.title(1) == "a"
    loaded.set_items(None)
    loaded.save_pretrained(saved)
    assert not (saved / "items.json").exists()
    assert SequentialRecommenderForNextItem.from_pretrained(saved).items is None


def test_a_link_is_replaced_and_not_followed(saved: Path, tmp_path: Path) -> None:
    model = SequentialRecommenderForNextItem.from_pretrained(saved)
    (tmp_path / "other").write_text("mine")
    (saved / "items.json").unlink()
    (saved / "items.json").symlink_to(tmp_path / "other")
    model.save_pretrained(saved)
    assert (tmp_path / "other").read_text() == "mine" and not (saved / "items.json").is_symlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "found broken JSON"),
        ("", "found broken JSON"),
        ("[" * 100000, "found broken JSON|found more than"),
        ("[1, 2, 3]", "found no list of ids"),
        ('{"titles": []}', "found no list of ids"),
        ('{"ids": "abc"}', "found no list of ids"),
        ('{"ids": [1, 2, 3], "titles": "abc"}', "found str as titles"),
        ('{"ids": [1, 2, 3], "titles": {}}', "found dict as titles"),
        ('{"ids": [1, 2]}', "ids: found 2 of them for a model with num_items=3"),
        ('{"ids": [1, 2, 2]}', "ids: found 2 twice"),
        ('{"ids": [1, 2, null]}', "ids: found None"),
        ('{"ids": [1, 2, NaN]}', "ids: found nan"),
        ('{"ids": [1, 2, [3]]}', r"ids: found \[3\]"),
        ('{"ids": [1, 2, ' + "9" * 5000 + "]}", "found broken JSON|ids: found"),
        ('{"ids": [1, 2, 3], "titles": ["a", "b", {}]}', "titles: found {}"),
        (b"\xff\xfe\x00", "found broken JSON"),
        ('{"ids": [1, 2, 3]' + " " * 100000 + "}", "found more than"),
    ],
)
def test_hostile_files(content: str | bytes, message: str, saved: Path) -> None:
    (saved / "items.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=rf"items\.json: ({message})"):
        SequentialRecommenderForNextItem.from_pretrained(saved)


def test_a_pipe_is_not_waited_for(saved: Path) -> None:
    (saved / "items.json").unlink()
    os.mkfifo(saved / "items.json")
    assert SequentialRecommenderForNextItem.from_pretrained(saved).items is None


def test_what_else_the_file_says_is_ignored(saved: Path) -> None:
    values = json.loads((saved / "items.json").read_text())
    (saved / "items.json").write_text(json.dumps({**values, "num_items": 9, "more": [1]}))
    assert len(SequentialRecommenderForNextItem.from_pretrained(saved).items) == 3
