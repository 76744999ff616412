"""One call from a name of data to interactions."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict

from hf_ext._arguments import Count, check_value
from hf_ext.data.interactions.formats import (
    ITEM,
    TIME,
    TITLE,
    USER,
    column_of,
    distinct_columns,
    read_events,
    read_titles,
)
from hf_ext.data.interactions.items import SHOWN, Id, ItemTable
from hf_ext.data.interactions.table import Duplicates, Interactions, build_interactions
from hf_ext.data.interactions.values import ids_of, ratings_of, times_of
from hf_ext.data.loading import EMBEDDED


def load_interactions(
    name: str | Path | Dataset | DatasetDict | pd.DataFrame,
    *,
    user_column: str = USER,
    item_column: str = ITEM,
    time_column: str | None = TIME,
    rating_column: str | None = None,
    min_rating: float | None = None,
    title_column: str | None = None,
    titles: str | Path | None = None,
    duplicates: Duplicates = "keep",
    min_events: int = 1,
    split: str | None = None,
) -> Interactions:
    """Read who took what and when.

    Args:
        name: a file: MovieLens' `u.data` or `ratings.dat`, RecBole's `*.inter`, csv, tsv, json or parquet; a folder of
            MovieLens or RecBole; anything else that `hf_ext.data.load` knows, such as a Hub id or `"shop"`; or data.
        user_column, item_column: of ids, integers or text. MovieLens' `userId` and `movieId` are found as well.
        time_column: of numbers or dates, of which the order alone counts, so that a unit does not matter. None: the
            order of the rows. Equal times are in the order of the rows; a warning says their share if it is above 5 %.
        rating_column: of ratings; `u.data` and `ratings.dat` call it `rating`.
        min_rating: events with a lower rating are left out. By default none are, and any event counts.
        title_column: of the items' titles, in `titles` if there is such a file, else among the events.
        titles: a file with titles (default column `title`) and ids of items, under the name of `item_column`. By
            default that beside the events: `u.item`, `movies.dat`, `movies.csv`, or RecBole's `*.item`.
        duplicates: what becomes of events of the same user and item: "keep" all, the "first" or "last" in time, or
            an "error".
        min_events: users with fewer events, of those that are left, are left out.
        split: of data that have several.

    Returns:
        The events, sorted by user and time; users and items are numbered in the order of their ids. The catalogue is
        of the items that are left. Items without a title have their id as one, and a warning says how many.

    Raises:
        ValueError: data that `load` refuses, without rows or columns, with several splits; ids, times or ratings that
            are missing or of the wrong kind, by column and row; an item with two titles; options that leave nothing.
    """
    for option, value, kind in (
        ("user_column", user_column, str),
        ("item_column", item_column, str),
        ("time_column", time_column, str | None),
        ("rating_column", rating_column, str | None),
        ("min_rating", min_rating, float | None),
        ("title_column", title_column, str | None),
        ("duplicates", duplicates, Duplicates),
        ("min_events", min_events, Count),
    ):
        check_value(option, value, kind)
    if min_rating is not None and rating_column is None:
        raise ValueError(f"min_rating: found {min_rating} without a rating_column, allowed is None, or with its name")
    table, beside = read_events(name, split)
    if table.empty:
        raise ValueError(f"name: found no rows in {_called(name)}, allowed are data with at least one")
    user = column_of(table, "user_column", user_column)
    item = column_of(table, "item_column", item_column)
    time = None
    if time_column is not None:
        time = column_of(table, "time_column", time_column, ", or None for the order of the rows")
    distinct_columns({"user_column": user, "item_column": item, "time_column": time, "rating_column": rating_column})
    users, items = ids_of(table, user), ids_of(table, item)
    times = None if time is None else times_of(table, time)
    kept = np.ones(len(table), dtype=bool)
    if rating_column is not None:
        ratings = ratings_of(table, column_of(table, "rating_column", rating_column))
        if min_rating is not None:
            kept = ratings >= min_rating
            if not kept.any():
                raise ValueError(f"min_rating: found {min_rating}, allowed are at most {ratings.max()}, the highest")
    interactions = build_interactions(
        users[kept], items[kept], None if times is None else times[kept], duplicates=duplicates, min_events=min_events
    )
    if isinstance(name, str) and name in EMBEDDED and titles is None and TITLE in table.columns:
        title_column = title_column or TITLE
    source, ids = table, items
    if titles is not None or (beside is not None and title_column not in table.columns):
        source = read_titles(Path(titles).expanduser() if titles is not None else Path(str(beside)))
        ids = ids_of(source, column_of(source, "item_column", item_column))
        title_column = title_column or _title_column(source)
    if title_column is None:
        return interactions
    column = column_of(source, "title_column", title_column)
    return _with_titles(interactions, dict_of_titles(ids, source[column]))


def dict_of_titles(ids: pd.Series, titles: pd.Series) -> dict[str, str]:
    """Titles by the text of ids, without those that are missing.

    Raises:
        ValueError: an item with two titles.
    """
    table = pd.DataFrame({"id": ids.to_numpy().astype(str), "title": titles.to_numpy(dtype=object)}).dropna()
    table["title"] = table["title"].astype(str).str.strip()
    table = table[table["title"] != ""].drop_duplicates()
    twice = table["id"].duplicated(keep=False)
    if twice.any():
        first = table.loc[twice, "id"].iloc[0]
        found = " and ".join(map(repr, table.loc[table["id"] == first, "title"].iloc[:2]))
        raise ValueError(f"titles: found {found} for the item {first}, allowed is one title an item")
    return dict(zip(table["id"], table["title"], strict=True))


def _with_titles(interactions: Interactions, titles: dict[str, str]) -> Interactions:
    ids = interactions.items.ids
    without: list[Id] = [raw for raw in ids if str(raw) not in titles]
    if len(without) == len(ids):
        shown = ", ".join(map(repr, ids[:SHOWN]))
        raise ValueError(f"titles: found none for any of the {len(ids)} items ({shown}, ...), allowed are theirs")
    if without:
        shown = ", ".join(map(repr, without[:SHOWN]))
        warnings.warn(f"{len(without)} of {len(ids)} items have no title ({shown}): their ids stand in", stacklevel=3)
    table = ItemTable(ids, [titles.get(str(raw), str(raw)) for raw in ids])
    return Interactions(interactions.user_ids, table, interactions.offsets, interactions.item_rows, interactions.times)


def _title_column(table: pd.DataFrame) -> str:
    """`title`, or the one that is about titles, such as RecBole's `movie_title`."""
    about = [str(name) for name in table.columns if TITLE in str(name).lower()]
    return about[0] if len(about) == 1 and TITLE not in table.columns else TITLE


def _called(name: Any) -> str:
    return repr(str(name)) if isinstance(name, str | Path) else f"the {type(name).__name__}"
