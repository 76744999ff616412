"""Files of interactions and of titles as tables: MovieLens, RecBole's atomic files, csv; all other data by `load`."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets.exceptions import DatasetGenerationError
from pyarrow import ArrowInvalid

from hf_ext.data.loading import load

USER, ITEM, TIME, RATING, TITLE = "user_id", "item_id", "timestamp", "rating", "title"
_EVENTS = [USER, ITEM, RATING, TIME]
_TABLES = {".tsv": "\t", ".csv": ","}
#: names of files with a form of their own: what separates columns, and the first of them
_BARE = {
    "u.data": ("\t", _EVENTS),
    "ratings.dat": ("::", _EVENTS),
    "u.item": ("|", [ITEM, TITLE]),
    "movies.dat": ("::", [ITEM, TITLE]),
}
#: files of events that make a folder one of MovieLens or RecBole, and those of titles beside them
_LOGS = {"u.data": "u.item", "ratings.dat": "movies.dat", "ratings.csv": "movies.csv"}
#: MovieLens' own names of columns
_ALIASES = {USER: "userId", ITEM: "movieId"}


def read_events(name: Any, split: str | None) -> tuple[pd.DataFrame, Path | None]:
    """The table of events of a name, as for `load_interactions`, and the file of titles beside it, if there is one.

    Raises:
        ValueError: as there.
    """
    if isinstance(name, pd.DataFrame):
        return name.reset_index(drop=True), None
    if isinstance(name, Dataset | DatasetDict):
        return _frame(name, split), None
    path = Path(name).expanduser()
    if path.is_dir():
        path = _log_in(path) or path
    if path.is_file() and is_text(path):
        return read_text(path), titles_beside(path)
    return _loaded(str(name), split), None


def is_text(path: Path) -> bool:
    """Whether a file is read here: `load` would make numbers of ids that begin with zeros."""
    return path.name in _BARE or path.suffix.lower() in (*_TABLES, ".inter", ".item")


def read_text(path: Path, argument: str = "name") -> pd.DataFrame:
    """A file as a table of text, with None where there is none. Errors are about `argument`.

    Raises:
        ValueError: an empty file, one without the columns of its form, or one that cannot be read.
    """
    separator, columns = _BARE.get(path.name, (_TABLES.get(path.suffix.lower(), "\t"), []))
    text = _decoded(path, argument)
    if separator == "::":  # one character is read many times faster
        text, separator = text.replace("\t", " ").replace("::", "\t"), "\t"
    quoting = csv.QUOTE_MINIMAL if path.suffix.lower() in _TABLES else csv.QUOTE_NONE
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_values": [""], "quoting": quoting}
    try:  # without a header: pandas would rename columns of one name, and let rows be longer than it
        table = pd.read_csv(io.StringIO(text), sep=separator, header=None, **options)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(
            f"{argument}: found {str(path)!r}, no table ({error}), allowed are rows of columns"
        ) from error
    if columns:
        if table.shape[1] < len(columns):
            raise ValueError(
                f"name: found {table.shape[1]} columns in {str(path)!r}, allowed are {', '.join(columns)}, "
                f"separated by {_BARE[path.name][0]!r}"
            )
        return table.iloc[:, : len(columns)].set_axis(columns, axis=1)
    table = table.iloc[1:].set_axis(table.iloc[0].astype(str).tolist(), axis=1).reset_index(drop=True)
    return _untyped(table, path) if path.suffix.lower() in (".inter", ".item") else table


def _untyped(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """RecBole's `user_id:token` as `user_id`."""
    wrong = [name for name in table.columns if ":" not in str(name)]
    if wrong:
        raise ValueError(
            f"name: found the columns {', '.join(map(str, wrong))} in {str(path)!r}, allowed are names with a type, "
            "such as user_id:token, separated by tabs"
        )
    return table.rename(columns=lambda name: name.rpartition(":")[0])


def _decoded(path: Path, argument: str) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if path.name in _BARE:  # MovieLens' older files
            return content.decode("latin-1")
        raise ValueError(
            f"{argument}: found {str(path)!r}, which is no text in UTF-8 ({error}), allowed are such"
        ) from error


def _log_in(folder: Path) -> Path | None:
    """The file of events in a folder of MovieLens or RecBole."""
    logs = [folder / name for name in _LOGS if (folder / name).is_file()] + sorted(folder.glob("*.inter"))
    if len(logs) > 1:
        found = ", ".join(log.name for log in logs)
        raise ValueError(f"name: found {found} in {str(folder)!r}, allowed is one file of events, or its own path")
    return logs[0] if logs else None


def titles_beside(path: Path) -> Path | None:
    """The file of titles that belongs to one of events."""
    name = f"{path.stem}.item" if path.suffix.lower() == ".inter" else _LOGS.get(path.name)
    return path.with_name(name) if name and path.with_name(name).is_file() else None


def read_titles(path: Path) -> pd.DataFrame:
    """A file of titles as a table.

    Raises:
        ValueError: as `read_text` and `load` do.
    """
    return read_text(path) if is_text(path) else _loaded(str(path), None)


def column_of(table: pd.DataFrame, argument: str, column: str, hint: str = "") -> str:
    """The name of a column in a table; MovieLens' own where the table has none of a default name.

    Raises:
        ValueError: there is none, or several; it says which there are.
    """
    found = column if column in table.columns else _ALIASES.get(column, column)
    if (count := list(table.columns).count(found)) != 1:
        columns = ", ".join(map(str, table.columns))
        what = f"{column!r}, of which there is none" if not count else f"{column!r}, of which there are {count}"
        raise ValueError(f"{argument}: found {what}, allowed are {columns}{hint}")
    return found


def distinct_columns(columns: Mapping[str, str | None]) -> None:
    """Refuse one column in two roles: ids taken for times give an order, if a senseless one.

    Args:
        columns: by argument; None for a role that no column has.

    Raises:
        ValueError: a column that is there twice.
    """
    seen: dict[str, str] = {}
    for role, column in columns.items():
        if column is not None and column in seen:
            raise ValueError(f"{role}: found {column!r}, which is the {seen[column]} too, allowed is another column")
        if column is not None:
            seen[column] = role


def _loaded(name: str, split: str | None) -> pd.DataFrame:
    try:
        return _frame(load(name), split)
    except (DatasetGenerationError, ArrowInvalid) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"name: found {name!r}, which cannot be read ({cause}), allowed are readable data") from error


def _frame(data: Any, split: str | None) -> pd.DataFrame:
    if isinstance(data, IterableDataset | IterableDatasetDict):
        raise ValueError("name: found a stream, allowed are data sets with a length")
    if isinstance(data, DatasetDict):
        if split is None and len(data) > 1:
            raise ValueError(f"split: found None and the splits {', '.join(data)}, allowed is the name of one")
        if split is not None and split not in data:
            raise ValueError(f"split: found {split!r}, allowed are {', '.join(data)}")
        data = data[split or next(iter(data))]
    return data.with_format(None).to_pandas()
