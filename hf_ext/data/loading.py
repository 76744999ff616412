"""One name for every source of data: embedded, a folder, a file, or the Hub."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from hf_ext.data.columns import holds_text, text_values
from hf_ext.data.digits import VARIANTS, digits
from hf_ext.data.facts import facts
from hf_ext.data.interactions.shop import shop

#: data sets that come with the package, by name: `(**options) -> DatasetDict`
EMBEDDED: dict[str, Callable[..., DatasetDict]] = {
    **{name: partial(digits, name) for name in VARIANTS},
    "facts": facts,
    "shop": shop,
}
#: names of splits, in the order in which one to evaluate on is looked for
EVALUATED = ("test", "validation", "val", "valid", "dev", "eval")
SPLITS = {"train", *EVALUATED}
_SPLIT_COLUMN = "split"
_READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load(name: str, **options: Any) -> DatasetDict:
    """Load a data set.

    Args:
        name: an embedded name (`EMBEDDED`); a folder written by `save_to_disk`; a folder of csv, json or parquet files
            (each a split of its name), of images in class folders, or laid out like a Hub repository; one csv, json
            or parquet file; or else a Hub id. Only the last is looked up on the Hub.
        **options: of the loader for embedded names (`digits`, `facts`, `simulate_shop`), of `load_from_disk` for saved
            folders, of `load_dataset` otherwise (where `split` and `streaming` change the type returned, as they do
            there).

    Returns:
        The splits; a single file or unsplit folder is the split `train`; see `split_by_column`.

    Raises:
        ValueError: nothing of that name, a file of an unknown kind, or a folder without data or with several kinds.
    """
    if name in EMBEDDED:
        return EMBEDDED[name](**options)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise ValueError(f"name: found the file {name!r}, allowed are files ending in {', '.join(_READERS)}")
        return load_dataset(_READERS[path.suffix.lower()], data_files={"train": str(path)}, **options)
    if path.is_dir():
        return _load_folder(path, options)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ValueError(
            f"name: found {name!r}, allowed are {', '.join(EMBEDDED)}, an existing folder or file, or a Hub id "
            "(OWNER/NAME)"
        )
    return load_dataset(name, **options)


def _load_folder(path: Path, options: dict[str, Any]) -> DatasetDict:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded = load_from_disk(str(path), **options)
        return DatasetDict({"train": loaded}) if isinstance(loaded, Dataset) else loaded
    tables = _tables(path)
    readers = {_READERS[file.suffix.lower()] for files in tables.values() for file in files}
    if len(readers) > 1:
        raise ValueError(f"name: found {' and '.join(sorted(readers))} files in {str(path)!r}, allowed is one kind")
    try:
        if tables:
            splits = {name: [str(file) for file in files] for name, files in tables.items()}
            if len(splits) == 1 and not SPLITS & set(splits):
                splits = {"train": next(iter(splits.values()))}
            return load_dataset(readers.pop(), data_files=splits, **options)
        return load_dataset(str(path), **options)
    except FileNotFoundError as error:
        raise ValueError(
            f"name: found no data in {str(path)!r}, allowed are folders of images or tables ({error})"
        ) from error


def split_by_column(data: Any) -> Any:
    """The splits that a column `split` of the only one names; other data as they are.

    Raises:
        ValueError: rows without a split.
    """
    rows = data["train"] if isinstance(data, DatasetDict) and list(data) == ["train"] else None
    if rows is None or not holds_text(rows, _SPLIT_COLUMN):
        return data
    places = np.asarray(rows[_SPLIT_COLUMN][:], dtype=object)
    rows = rows.remove_columns(_SPLIT_COLUMN)
    names = text_values(data["train"], _SPLIT_COLUMN)
    return DatasetDict({name: rows.select(np.flatnonzero(places == name)) for name in names})


def _tables(path: Path) -> dict[str, list[Path]]:
    """The files of a flat folder of tables by split, or nothing if the folder has another layout."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    tables = [entry for entry in entries if entry.suffix.lower() in _READERS]
    nested = any(entry.is_dir() for entry in entries)
    # metadata.csv and the like describe images in the same folder; train-00000-of-00002 is a shard, not a split
    if nested or not all(re.fullmatch(r"(?!metadata)\w+", file.stem) for file in tables):
        return {}
    return {file.stem: [other for other in tables if other.stem == file.stem] for file in tables}
