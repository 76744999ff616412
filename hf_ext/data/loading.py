"""One name for every source of data: embedded, a folder, a file, or the Hub."""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from hf_ext.data.digits import VARIANTS, digits

#: names of the data sets that come with the package
EMBEDDED = tuple(VARIANTS)
_READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load(name: str, **options: Any) -> DatasetDict:
    """Load a data set.

    Args:
        name: an embedded name (`EMBEDDED`); a folder written by `save_to_disk`; a folder of csv, json or parquet files
            (named after their splits) or of images in class folders; one such file; or else a Hub id.
        **options: of `digits` for embedded names, of `datasets.load_dataset` otherwise.

    Returns:
        The splits; a single file or unsplit folder is the split `train`.

    Raises:
        ValueError: nothing of that name, or a file of an unknown kind.
    """
    if name in EMBEDDED:
        return digits(name, **options)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix not in _READERS:
            raise ValueError(f"name: found the file {name!r}, allowed are files ending in {', '.join(_READERS)}")
        return load_dataset(_READERS[path.suffix], data_files={"train": str(path)}, **options)
    if path.is_dir():
        return _load_folder(path, options)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ValueError(
            f"name: found {name!r}, allowed are {', '.join(EMBEDDED)}, an existing folder or file, or a Hub id "
            "(OWNER/NAME)"
        )
    return load_dataset(name, **options)


def _load_folder(path: Path, options: dict[str, Any]) -> DatasetDict:
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        loaded = load_from_disk(str(path))
        return DatasetDict({"train": loaded}) if isinstance(loaded, Dataset) else loaded
    for suffix, reader in _READERS.items():
        if files := sorted(path.glob(f"*{suffix}")):
            splits = {file.stem: str(file) for file in files}
            # metadata.csv and the like describe the images beside them
            if not any(stem.startswith("metadata") for stem in splits):
                return load_dataset(reader, data_files=splits, **options)
    return load_dataset("imagefolder", data_dir=str(path), **options)
