"""Logs of interactions from every form of file, and what is refused."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from hf_ext.data import Interactions, load_interactions, simulate_shop

EVENTS = [("7", "30", 4.0, 20), ("7", "10", 5.0, 10), ("2", "30", 1.0, 5), ("2", "20", 3.0, 5), ("7", "10", 2.0, 30)]
TITLES = {"10": "Amélie (2001)", "20": "Babe", "30": "Clue, the Movie"}


def _frame(**columns: Any) -> pd.DataFrame:
    events = {
        "user_id": [int(user) for user, *_ in EVENTS],
        "item_id": [int(item) for _, item, *_ in EVENTS],
        "rating": [rating for *_, rating, _ in EVENTS],
        "timestamp": [time for *_, time in EVENTS],
    }
    return pd.DataFrame(events | columns)


def _quiet(name: Any, **options: Any) -> Interactions:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_interactions(name, **options)


def _lines(separator: str) -> str:
    return "".join(separator.join(map(str, (user, item, rating, time))) + "\n" for user, item, rating, time in EVENTS)


def _u_data(folder: Path) -> Path:
    (folder / "u.data").write_text(_lines("\t"))
    (folder / "u.item").write_text("".join(f"{i}|{t}|x|y\n" for i, t in TITLES.items()), encoding="latin-1")
    return folder / "u.data"


def _dat(folder: Path) -> Path:
    (folder / "ratings.dat").write_text(_lines("::"))
    (folder / "movies.dat").write_text("".join(f"{i}::{t}::Drama\n" for i, t in TITLES.items()), encoding="latin-1")
    return folder / "ratings.dat"


def _csv(folder: Path) -> Path:
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + _lines(","))
    rows = "".join(f'{i},"{t}",Drama\n' for i, t in TITLES.items())
    (folder / "movies.csv").write_text("movieId,title,genres\n" + rows, encoding="utf-8")
    return folder / "ratings.csv"


def _recbole(folder: Path) -> Path:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "tiny.inter").write_text(header + _lines("\t"))
    rows = "".join(f"{i}\t{t}\n" for i, t in TITLES.items())
    (folder / "tiny.item").write_text("item_id:token\tmovie_title:token_seq\n" + rows, encoding="utf-8")
    return folder / "tiny.inter"


@pytest.mark.parametrize("whole_folder", [False, True])
@pytest.mark.parametrize("write", [_u_data, _dat, _csv, _recbole])
def test_movielens_and_recbole(write: Any, whole_folder: bool, tmp_path: Path) -> None:
    path = write(tmp_path)
    log = _quiet(str(tmp_path if whole_folder else path), rating_column="rating")
    assert log.user_ids == [2, 7] and log.items.ids == [10, 20, 30]
    assert log.offsets.tolist() == [0, 2, 5]
    assert log.item_rows.tolist() == [3, 2, 1, 3, 1]  # 30 before 20: equal times, as in the file
    assert log.times is not None and log.times.tolist() == [5, 5, 10, 20, 30]
    assert log.items.titles == list(TITLES.values())
    assert (len(log), log.num_users, log.num_items) == (5, 2, 3)


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "parquet", "frame", "dataset", "saved"])
def test_tables_with_columns_of_any_name(kind: str, tmp_path: Path) -> None:
    frame = _frame(title=[TITLES[item] for _, item, *_ in EVENTS]).rename(
        columns={"user_id": "who", "item_id": "what", "timestamp": "when"}
    )
    source: Any = tmp_path / f"log.{kind}"
    if kind in ("csv", "tsv"):
        frame.to_csv(source, index=False, sep="," if kind == "csv" else "\t")
    elif kind == "json":
        frame.to_json(source, orient="records", lines=True)
    elif kind == "parquet":
        frame.to_parquet(source)
    elif kind == "saved":
        DatasetDict({"train": Dataset.from_pandas(frame)}).save_to_disk(str(source))
    else:
        source = frame if kind == "frame" else Dataset.from_pandas(frame)
    log = _quiet(source, user_column="who", item_column="what", time_column="when", title_column="title")
    assert log.user_ids == [2, 7] and log.item_rows.tolist() == [3, 2, 1, 3, 1]
    assert log.items.titles == list(TITLES.values())


def test_ids_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "books.csv").write_text("user_id,item_id,timestamp\n12,0195,1\n3,195,2\n12,08X,3\n")
    log = load_interactions(str(tmp_path / "books.csv"))
    assert log.items.ids == ["0195", "08X", "195"] and log.user_ids == [3, 12]
    (tmp_path / "one.csv").write_text("user_id,item_id,timestamp\n012,A1,1\n12,7,2\n")
    assert load_interactions(str(tmp_path / "one.csv")).user_ids == ["012", "12"]


def test_floats_that_are_whole_numbers_are_ids(tmp_path: Path) -> None:
    floats = _frame(user_id=[7.0, 7.0, 2.0, 2.0, 7.0])
    floats.to_csv(tmp_path / "floats.csv", index=False)
    for source in (floats, str(tmp_path / "floats.csv")):
        users = _quiet(source).user_ids
        assert users == [2, 7] and all(type(user) is int for user in users)


def test_order_of_the_rows_in_place_of_times() -> None:
    log = load_interactions(_frame(), time_column=None)
    assert log.times is None and log.tied_share == 0
    assert log.item_rows.tolist() == [3, 2, 3, 1, 1]


@pytest.mark.parametrize(
    "times",
    [
        ["20", "10", "5", "5", "30"],
        ["2020-01-03", "2020-01-02T10:00:00", "2020-01-01", "2020-01-01", "2020-02-01 00:00:00+02:00"],
        pd.to_datetime(["2020-01-03", "2020-01-02", "2020-01-01", "2020-01-01", "2020-02-01"]),
        [2.5, 1.5, 0.5, 0.5, 3.5],
    ],
)
def test_times_of_any_kind(times: Any) -> None:
    assert _quiet(_frame(timestamp=times)).item_rows.tolist() == [3, 2, 1, 3, 1]


def test_a_zone_moves_a_time() -> None:
    times = ["2020-01-01T12:00:00+00:00", "2020-01-01T13:00:00+05:00"]
    frame = pd.DataFrame({"user_id": [1, 1], "item_id": [10, 20], "timestamp": times})
    assert load_interactions(frame).item_rows.tolist() == [2, 1]


def test_ties_are_reported() -> None:
    with pytest.warns(UserWarning, match="33% of neighbouring events of a user have the same time"):
        assert load_interactions(_frame()).tied_share == pytest.approx(1 / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_interactions(_frame(timestamp=[4, 3, 2, 1, 5]))


def test_ratings_leave_out_what_is_below() -> None:
    log = _quiet(_frame(), rating_column="rating", min_rating=3)
    assert log.user_ids == [2, 7] and log.items.ids == [10, 20, 30] and log.item_rows.tolist() == [2, 1, 3]


@pytest.mark.parametrize(
    ("duplicates", "rows"), [("keep", [3, 2, 1, 3, 1]), ("first", [3, 2, 1, 3]), ("last", [3, 2, 3, 1])]
)
def test_duplicates(duplicates: Any, rows: list[int]) -> None:
    assert _quiet(_frame(), duplicates=duplicates).item_rows.tolist() == rows
    with pytest.raises(ValueError, match="duplicates: found 1 repeated events, the first of user 7 and item 10"):
        _quiet(_frame(), duplicates="error")


def test_users_with_few_events_and_their_items_are_left_out() -> None:
    log = _quiet(_frame(), min_events=3)
    assert log.user_ids == [7] and log.items.ids == [10, 30] and log.item_rows.tolist() == [1, 2, 1]
    with pytest.raises(ValueError, match="min_events: found 4, allowed are at most 3"):
        _quiet(_frame(), min_events=4)


def test_one_event_one_user_one_item_is_a_log() -> None:
    log = load_interactions(_frame().iloc[:1])
    assert (len(log), log.num_users, log.num_items, log.tied_share) == (1, 1, 1, 0)


def test_rows_and_titles_of_the_catalogue(tmp_path: Path) -> None:
    items = _quiet(_u_data(tmp_path)).items
    assert items.rows([30, np.int64(10)]).tolist() == [3, 1] and items.rows([]).tolist() == []
    assert items.title(1) == "Amélie (2001)"
    for unknown in ("10", 11, True, None, 10.0):
        with pytest.raises(ValueError, match=f"item ids: found {unknown!r}, allowed are the 3 of the catalogue"):
            items.rows([10, unknown])
    for row in (0, 4, -1):
        with pytest.raises(ValueError, match=f"row: found {row}, allowed are 1 to 3"):
            items.title(row)
    assert _quiet(_frame()).items.title(2) == "20"


def test_items_without_titles(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    path.write_text("item_id,title\n10,Ten\n30,\n")
    with pytest.warns(UserWarning, match="2 of 3 items have no title"):
        log = load_interactions(_frame(timestamp=range(5)), titles=path)
    assert log.items.titles == ["Ten", "20", "30"]
    path.write_text("item_id,title\n99,Other\n")
    with pytest.raises(ValueError, match="titles: found none for any of the 3 items"):
        _quiet(_frame(), titles=path)
    path.write_text("item_id,title\n10,Ten\n10,Zehn\n")
    with pytest.raises(ValueError, match="titles: found 'Ten' and 'Zehn' for the item 10"):
        _quiet(_frame(), titles=path)
    with pytest.raises(ValueError, match="titles: found 'x' and 'b' for the item 30"):
        _quiet(_frame(title=list("xabce")), title_column="title", duplicates="first")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1, 2, None, 2, 1]}, r"user_id: found nan in row 2 .*1 such of 5"),
        ({"item_id": ["a", "b", None, "c", "d"]}, r"item_id: found (None|nan) in row 2"),
        ({"item_id": ["1", "2", "nan", "3", "4"]}, r"item_id: found 'nan' in row 2"),
        ({"item_id": ["a", " ", "b", "", "c"]}, r"item_id: found ' ' in row 1 .*2 such"),
        ({"item_id": [1.5, 2.0, 3.0, 4.0, 5.0]}, r"item_id: found .*1\.5.* in row 0 .*whole numbers"),
        ({"item_id": [1e16, 2.0, 3.0, 4.0, 5.0]}, r"item_id: found .* in row 0 .*whole numbers"),
        ({"item_id": [np.inf, 2.0, 3.0, 4.0, 5.0]}, r"item_id: found .*inf.* in row 0"),
        ({"item_id": np.array([2**63, 1, 2, 3, 4], dtype=np.uint64)}, r"item_id: found .* in row 0"),
        ({"user_id": [True, False, True, True, True]}, "user_id: found booleans as ids"),
        ({"item_id": [1, "2", 3, 4, 5]}, "item_id: found integers and text as ids"),
        ({"item_id": [[1], [2], [3], [4], [5]]}, "item_id: found list objects as ids"),
        ({"timestamp": [1, 2, None, 3, 4]}, r"timestamp: found nan in row 2"),
        ({"timestamp": [1, 2, np.inf, 3, 4]}, r"timestamp: found .*inf.* in row 2"),
        ({"timestamp": ["1", "2", "soon", "3", "4"]}, r"timestamp: found 'soon' in row 2"),
        ({"timestamp": ["2020-01-01", "2020-13-01", "x", "2020-01-01", "2020"]}, r"timestamp: found .* in row"),
        ({"timestamp": ["a", "b", "c", "d", "e"]}, r"timestamp: found 'a' in row 0 .*5 such of 5"),
        ({"timestamp": [True, False, True, True, True]}, "timestamp: found booleans"),
        ({"rating": [1, 2, None, 3, 4]}, r"rating: found nan in row 2"),
        ({"rating": ["1", "2", "good", "3", "4"]}, r"rating: found 'good' in row 2"),
        ({"rating": [1, 2, -np.inf, 3, 4]}, r"rating: found .*inf.* in row 2"),
        ({"rating": [True, True, True, True, True]}, "rating: found booleans"),
    ],
)
def test_values_that_are_none(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _quiet(_frame(**columns), rating_column="rating")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user_column": "who"}, "user_column: found 'who', of which there is none, allowed are user_id, item_id"),
        ({"item_column": "what"}, "item_column: found 'what', of which there is none"),
        ({"time_column": "when"}, "time_column: found 'when', .* or None for the order of the rows"),
        ({"time_column": "item_id"}, "time_column: found 'item_id', which is the item_column too"),
        ({"rating_column": "stars"}, "rating_column: found 'stars', of which there is none"),
        ({"title_column": "name"}, "title_column: found 'name', of which there is none"),
        ({"min_rating": 3.0}, "min_rating: found 3.0 without a rating_column"),
        ({"min_rating": float("nan"), "rating_column": "rating"}, "min_rating: found nan"),
        ({"min_rating": 6, "rating_column": "rating"}, "min_rating: found 6, allowed are at most 5.0"),
        ({"duplicates": "drop"}, "duplicates: found 'drop', allowed are 'keep', 'first', 'last', 'error'"),
        ({"min_events": 0}, "min_events: found 0, allowed are integers >= 1"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _quiet(_frame(), **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"", "no table"),
        ("log.csv", b"user_id,item_id,timestamp\n", "name: found no rows"),
        ("log.csv", b"user_id,item_id,timestamp\n1,\xff,3\n", "no text in UTF-8"),
        ("log.csv", b"user_id,user_id,item_id,timestamp\n1,2,3,4\n", "'user_id', of which there are 2"),
        ("log.csv", b"user_id,item_id,timestamp\n1,2,3,4\n", "no table .*Expected 3 fields in line 2, saw 4"),
        ("u.data", b"", "no table"),
        ("u.data", b"1\t2\t3\n", "name: found 3 columns .*allowed are user_id, item_id, rating, timestamp"),
        ("ratings.dat", b"1,2,3,4\n", "name: found 1 columns"),
        (
            "x.inter",
            b"user_id\titem_id\n1\t2\n",
            "name: found the columns user_id, item_id .*allowed are names with a type",
        ),
        ("log.parquet", b"no parquet", "name: found .*which cannot be read"),
    ],
)
def test_files_that_are_no_logs(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_interactions(str(tmp_path / name))


def test_two_logs_in_a_folder_and_several_splits(tmp_path: Path) -> None:
    _u_data(tmp_path), _csv(tmp_path)
    with pytest.raises(ValueError, match=r"name: found u.data, ratings.csv in .*allowed is one file"):
        load_interactions(str(tmp_path))
    data = DatasetDict({name: Dataset.from_pandas(_frame()) for name in ("train", "test")})
    with pytest.raises(ValueError, match="split: found None and the splits train, test"):
        _quiet(data)
    with pytest.raises(ValueError, match="split: found 'dev', allowed are train, test"):
        _quiet(data, split="dev")
    assert len(_quiet(data, split="test")) == 5


def test_the_embedded_shop_is_the_simulated_one() -> None:
    log, shop = load_interactions("shop"), simulate_shop().interactions
    assert log.user_ids == shop.user_ids and log.items.ids == shop.items.ids and log.items.titles == shop.items.titles
    assert np.array_equal(log.item_rows, shop.item_rows) and np.array_equal(log.offsets, shop.offsets)
    assert log.digest == shop.digest
