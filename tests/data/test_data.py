"""Embedded data, one loader for all sources, and the collator that keeps columns."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from torch.utils.data import DataLoader
from transformers import default_data_collator

from hf_ext.data import KeepColumns, digits, facts, load
from hf_ext.data.digits import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_embedded_splits(name: str) -> None:
    data = load(name)
    tasks = data["train"].features["task_ids"].names
    assert {split: len(rows) for split, rows in data.items()} == {
        "pretrain": 597,
        "train": 600 * len(tasks),
        "test": 600 * len(tasks),
    }
    pixels = data["train"][:]["pixel_values"]
    assert pixels.shape == (600 * len(tasks), 1, 8, 8)
    assert pixels.dtype == torch.float32
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert data["train"][:]["task_ids"].bincount().tolist() == [600] * len(tasks)
    assert torch.equal(data["test"][:]["task_ids"], data["test"][:]["domain_ids"])


def test_rotated_digits_are_the_same_images_turned_with_shifted_labels() -> None:
    rows = digits("digits-rotated")["test"][:]
    pixels, labels = rows["pixel_values"].reshape(4, 600, 8, 8), rows["labels"].reshape(4, 600)
    for task, shift in enumerate((0, 3, 5, 7)):
        assert torch.equal(pixels[task], torch.rot90(pixels[0], task, dims=(1, 2)))
        assert torch.equal(labels[task], (labels[0] + shift) % 10)


def test_domains_share_the_labels() -> None:
    labels = digits("digits-domains")["train"][:]["labels"].reshape(4, 600)
    assert all(torch.equal(domain, labels[0]) for domain in labels)


def test_splits_share_no_image_and_depend_on_the_seed_only() -> None:
    first, again, other = digits(seed=1), digits(seed=1), digits(seed=2)
    for split in first:
        assert torch.equal(first[split][:]["pixel_values"], again[split][:]["pixel_values"])
    assert not torch.equal(first["train"][:]["pixel_values"], other["train"][:]["pixel_values"])
    assert torch.equal(first["test"][:]["pixel_values"], other["test"][:]["pixel_values"])
    images = [row.tobytes() for split in ("pretrain", "train", "test") for row in _plain(first[split])]
    assert len(images) == 1797
    assert len(set(images)) >= 1797 - 5  # the source has hardly any exact copies


def _plain(split: Dataset) -> np.ndarray:
    rows = split[:]
    return rows["pixel_values"][rows["task_ids"] == 0].numpy()


@pytest.mark.parametrize("name", VARIANTS)
def test_size_repeats_pixels(name: str) -> None:
    small, large = digits(name)["test"][:]["pixel_values"], digits(name, size=16)["test"][:]["pixel_values"]
    assert torch.equal(large, small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


@pytest.mark.parametrize("size", [0, 4, 12])
def test_size_is_checked(size: int) -> None:
    with pytest.raises(ValueError, match=f"size: found {size}, allowed are multiples of 8"):
        load("digits", size=size)


def test_every_fact_has_one_answer_and_a_question_that_is_not_trained_on() -> None:
    data, again, other = load("facts", seed=3), facts(seed=3), facts(seed=4)
    assert {name: len(rows) for name, rows in data.items()} == {"train": 720, "test": 360}
    train, test = (data[name].to_pandas() for name in ("train", "test"))
    assert not set(train["question"]) & set(test["question"])
    known = train.groupby(["person", "attribute"])["answer"]
    assert known.nunique().eq(1).all() and known.size().eq(2).all()
    asked = test.set_index(["person", "attribute"])["answer"]
    assert len(asked) == 360 and asked.eq(known.first()).all()
    assert (train["text"] == train["question"] + " " + train["answer"]).all()
    assert data["train"].features["person"].num_classes == 60
    assert data["train"][:] == again["train"][:] and data["train"][:] != other["train"][:]


def test_local_sources(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    rows.to_csv(tmp_path / "one.csv")
    assert load(str(tmp_path / "one.csv"))["train"]["text"][:] == ["a", "b"]

    (tmp_path / "splits").mkdir()
    rows.to_parquet(tmp_path / "splits" / "train.parquet")
    rows.to_parquet(tmp_path / "splits" / "test.parquet")
    assert set(load(str(tmp_path / "splits"))) == {"train", "test"}

    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    assert load(str(tmp_path / "saved"))["train"]["label"][:] == [0, 1]

    for kind in ("cat", "dog"):
        (tmp_path / "images" / "train" / kind).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / "train" / kind / "0.png")
    images = load(str(tmp_path / "images"))["train"]
    assert images.features["label"].names == ["cat", "dog"]


def _tables(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True)
    for name in names:
        rows = Dataset.from_dict({"text": ["a", "b"]})
        {".csv": rows.to_csv, ".json": rows.to_json, ".parquet": rows.to_parquet}[Path(name).suffix](folder / name)
    return str(folder)


def test_every_table_of_a_flat_folder_is_a_split(tmp_path: Path) -> None:
    data = load(_tables(tmp_path / "flat", "pretrain.csv", "train.csv", "monday.csv"))
    assert {split: len(rows) for split, rows in data.items()} == {"pretrain": 2, "train": 2, "monday": 2}


@pytest.mark.parametrize("below", ["", "data"])
def test_shards_are_joined(tmp_path: Path, below: str) -> None:
    shards = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet")
    _tables(tmp_path / "repository" / below, *shards)
    data = load(str(tmp_path / "repository"))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4, "test": 2}


def test_metadata_describe_the_images_beside_them(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    (tmp_path / "metadata.csv").write_text("file_name,labels,task_ids\n0.png,7,3\n")
    row = load(str(tmp_path))["train"][0]
    assert (row["labels"], row["task_ids"], row["image"].size) == (7, 3, (4, 4))


def test_a_saved_single_split_is_train(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    assert load(str(tmp_path / "saved"))["train"]["text"][:] == ["a"]


def test_folders_without_one_kind_of_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name: found csv and json files in .*, allowed is one kind"):
        load(_tables(tmp_path / "mixed", "train.csv", "test.json"))
    with pytest.raises(ValueError, match=r"name: found no data in .*, allowed are folders of"):
        load(_tables(tmp_path / "empty"))


def test_only_hub_ids_reach_the_hub() -> None:
    with pytest.raises(OSError, match="owner/name"):  # offline
        load("owner/name")


@pytest.mark.parametrize("name", ["no-such-name", "./no/such/folder", "/no/such/file.csv"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="digits-rotated"):
        load(name)


def test_unknown_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(ValueError, match="allowed are files ending in"):
        load(str(tmp_path / "data.xlsx"))


# ------------------------------------------------------------------------------------------------ collator
def _drops_unknown_keys(examples: list[dict[str, Any]]) -> dict[str, Any]:
    assert all(set(example) == {"x"} for example in examples)
    return {"x": torch.tensor([example["x"] for example in examples])}


def test_columns_go_around_a_collator_that_would_drop_them() -> None:
    batch = KeepColumns(_drops_unknown_keys, ["task_ids", "absent"])([{"x": 1.0, "task_ids": t} for t in (2, 0)])
    assert batch["task_ids"].dtype == torch.int64
    assert batch["task_ids"].tolist() == [2, 0]
    assert set(batch) == {"x", "task_ids"}


def test_collator_in_a_dataloader_of_the_embedded_data() -> None:
    loader = DataLoader(
        load("digits-rotated")["train"], 8, collate_fn=KeepColumns(default_data_collator, ["task_ids"])
    )
    batch = next(iter(loader))
    assert batch["pixel_values"].shape == (8, 1, 8, 8)
    assert batch["task_ids"].shape == batch["labels"].shape == (8,)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"x": 1.0, "task_ids": 0}, {"x": 1.0}], "task_ids: found none in 1 of 2 examples"),
        ([{"x": 1.0, "task_ids": 0.5}], "task_ids: found torch.float32"),
        ([{"x": 1.0, "task_ids": [0, 1]}], "allowed is an integer"),
        ([{"x": 1.0, "task_ids": "a"}], "task_ids: found 'a' and the like, allowed are integers"),
        ([{"x": 1.0, "task_ids": [0]}, {"x": 1.0, "task_ids": [0, 1]}], "allowed are integers"),
        ([{"x": 1.0, "task_ids": True}], "task_ids: found torch.bool"),
        ([{"x": 1.0, "task_ids": 3}], "found ids from 3 to 3, allowed are 0 to 2"),
        ([{"x": 1.0, "task_ids": -1}], "found ids from -1 to -1, allowed are 0 to 2"),
    ],
)
def test_wrong_columns_are_refused(examples: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KeepColumns(_drops_unknown_keys, ["task_ids"], {"task_ids": 3})(examples)


class _WithTokenizer:
    tokenizer = "the tokenizer"

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return default_data_collator(examples)


def test_collator_stands_in_for_the_wrapped_one() -> None:
    assert KeepColumns(_WithTokenizer(), []).tokenizer == "the tokenizer"
    with pytest.raises(AttributeError):
        KeepColumns(default_data_collator, []).tokenizer  # noqa: B018
    assert pickle.loads(pickle.dumps(KeepColumns(default_data_collator, ["a"]))).columns == ("a",)
