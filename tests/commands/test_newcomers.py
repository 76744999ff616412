"""The first things that people try: data without a test split, tasks with names, an end that says what came out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from huggingface_hub import ModelCard
from PIL import Image
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_ext.commands.cli import main
from hf_ext.commands.loading import DataArguments
from hf_ext.commands.parsing import parse
from hf_ext.commands.places import check_place
from hf_ext.commands.splits import splits_of
from hf_ext.data import load
from hf_ext.data.loading import split_by_column

Train = Callable[..., int]


@pytest.fixture
def vit(tmp_path: Path) -> str:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes))
    model.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(
        tmp_path / "vit"
    )
    return str(tmp_path / "vit")


@pytest.fixture
def train(tmp_path: Path, vit: str) -> Train:
    """`hf-ext train METHOD` for one step; the exit code."""

    def run(method: str, dataset: Any, *words: str) -> int:
        place = ["--model_name_or_path", vit, "--dataset", str(dataset), "--output_dir", str(tmp_path / "out")]
        return main(["train", method, *place, "--max_steps", "1", "--use_cpu", "true", "--report_to", "none", *words])

    return run


def class_folders(folder: Path, count: int = 5) -> Path:
    for name, shade in (("dark", 0), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), shade + number).save(folder / name / f"{number}.png")
    return folder


def pixels(count: int = 40, **columns: list[Any]) -> Any:
    rows = load("digits")["test"].with_format(None).select(range(count)).remove_columns(["task_ids", "domain_ids"])
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def test_a_flat_folder_of_class_folders(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("divbs", class_folders(tmp_path / "images")) == 0
    remark = (
        "Evaluated on 2 of the 10 rows of split 'train', a share of 0.2 of every class, which were drawn by seed 42"
    )
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(remark) for line in lines)
    assert any(line.startswith("eval_accuracy: ") for line in lines)
    assert lines[-1] == f"result: {tmp_path / 'out'} (README.md is its model card)"
    assert remark in " ".join(ModelCard.load(tmp_path / "out" / "README.md").text.split())


def test_no_evaluation(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("divbs", class_folders(tmp_path / "images"), "--eval_split", "none") == 0
    assert not (tmp_path / "out" / "eval_results.json").exists()
    assert "Nothing was evaluated" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_one_file_with_a_column_of_splits(kind: str, tmp_path: Path) -> None:
    rows = pixels(10, split=["train"] * 7 + ["test"] * 3).remove_columns("pixel_values")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / f"rows.{kind}", tmp_path / "folder" / f"rows.{kind}"):
        getattr(rows, f"to_{kind}")(place)
    for name in (f"rows.{kind}", "folder"):
        loaded = split_by_column(load(str(tmp_path / name)))
        assert {split: len(part) for split, part in loaded.items()} == {"train": 7, "test": 3}
        assert loaded["train"].column_names == ["labels"]
        assert list(loaded["test"]["labels"]) == list(rows["labels"][7:])


def test_rows_without_a_split(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("labels,split\n1,train\n2,\n3,test\n")
    with pytest.raises(ValueError, match="split: found rows without a value"):
        split_by_column(load(str(tmp_path / "rows.csv")))


def test_one_file_of_pixels_without_splits(train: Train, tmp_path: Path) -> None:
    pixels(40).to_parquet(tmp_path / "rows.parquet")
    assert train("divbs", tmp_path / "rows.parquet", "--eval_share", "0.5") == 0
    assert "eval_accuracy" in json.loads((tmp_path / "out" / "eval_results.json").read_text())


def test_the_share_is_of_every_class_and_drawn_by_seed() -> None:
    rows = DatasetDict(train=pixels(100).add_column("row", list(range(100))))

    def kept(seed: int) -> DatasetDict:
        return splits_of(rows, DataArguments(), seed)[0]

    one = kept(0)
    assert not set(one["train"]["row"]) & set(one["eval"]["row"])
    assert len(one["train"]) + len(one["eval"]) == 100
    for label in range(10):
        total = list(rows["train"]["labels"]).count(label)
        assert list(one["eval"]["labels"]).count(label) == round(0.2 * total)
    assert list(one["eval"]["row"]) == list(kept(0)["eval"]["row"]) != list(kept(1)["eval"]["row"])


def test_which_split_is_evaluated_on() -> None:
    part = pixels(20)
    both = DatasetDict(train=part, validation=part.select(range(3)), test=part.select(range(4)))
    assert len(splits_of(both, DataArguments(), 0)[0]["eval"]) == 4
    assert len(splits_of(both, DataArguments(eval_split="validation"), 0)[0]["eval"]) == 3
    del both["test"]
    assert splits_of(both, DataArguments(), 0)[0]["eval"].num_rows == 3
    for nothing in (None, "none"):
        assert list(splits_of(both, DataArguments(eval_split=nothing), 0)[0]) == ["train"]
    with pytest.raises(ValueError, match=r"split: found 'dev', allowed are \['train', 'validation'\]"):
        splits_of(both, DataArguments(eval_split="dev"), 0)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan"), 1e-9])
def test_shares_that_leave_nothing(share: float) -> None:
    with pytest.raises(ValueError, match="eval_share: found"):
        splits_of(DatasetDict(train=pixels(20)), DataArguments(eval_share=share), 0)


def test_tasks_with_names_are_counted(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels(40, task=["north", "south", "east", "west"] * 10).to_parquet(tmp_path / "rows.parquet")
    words = ["--mola_task_column", "task", "--modules_to_save", "classifier"]
    assert train("mola", tmp_path / "rows.parquet", *words) == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["num_experts"] == 4
    assert "0 east, 1 north, 2 south, 3 west" in ModelCard.load(tmp_path / "out" / "README.md").text
    metrics = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert {f"eval_task_{name}_accuracy" for name in ("north", "south", "east", "west")} <= set(metrics)
    capsys.readouterr()
    assert train("mola", tmp_path / "rows.parquet", *words, "--routing", "router") == 2
    assert "num_experts: found none with routing='router'" in capsys.readouterr().err
    assert train("mola", tmp_path / "rows.parquet", *words, "--num_experts", "2") == 2
    assert "task: found 4 tasks (east, north, south, west) in train_dataset, allowed are 2" in capsys.readouterr().err


def test_ids_of_tasks_are_counted(train: Train, tmp_path: Path) -> None:
    pixels(40, task_ids=[0, 1, 2, 1] * 10).to_parquet(tmp_path / "rows.parquet")
    assert train("mola", tmp_path / "rows.parquet") == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["num_experts"] == 3


def test_defaults_of_a_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def size(*words: str) -> int:
        options: dict[str, Any] = {"prog": "x", "description": "", "defaults": {"per_device_train_batch_size": 32}}
        (args,) = parse((TrainingArguments,), ["--output_dir", str(tmp_path), "--use_cpu", *words], **options)
        return args.per_device_train_batch_size

    (tmp_path / "options.yaml").write_text("per_device_train_batch_size: 5")
    assert size() == 32
    assert size("--config", str(tmp_path / "options.yaml")) == 5
    assert size("--per_device_train_batch_size", "4") == 4
    with pytest.raises(SystemExit):
        main(["train", "rd", "--help"])
    assert "By default --per_device_train_batch_size is 32 here." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("place", ["resnet18.a1_in1k", "resnet18", "hf_hub:timm/resnet18.a1_in1k"])
def test_names_of_timm(place: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"'timm/resnet18.*', its Hub id, which TimmWrapperForImageClassification"):
        check_place("model_name_or_path", place)
    check_place("model_name_or_path", "timm/resnet18.a1_in1k")
    check_place("model_name_or_path", "gpt2")


def edited(vit: str, file: str, content: str) -> None:
    (Path(vit) / file).write_text(content)


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": "x"}, {"num_attention_heads": 0}, {"id2label": [1]}, {"hidden_act": "no"}, {"patch_size": [1]}],
)
def test_configurations_of_the_wrong_types(
    change: dict[str, Any], train: Train, vit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(vit, "config.json", json.dumps(json.loads((Path(vit) / "config.json").read_text()) | change))
    assert train("divbs", "digits") == 2
    assert f"model_name_or_path {vit!r}: found a model that cannot be loaded" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "", "null", "[]", "\ufeff{}", '{"a":' * 50_000 + "1" + "}" * 50_000])
def test_broken_configurations(content: str, train: Train, vit: str, capsys: pytest.CaptureFixture[str]) -> None:
    edited(vit, "config.json", content)
    assert train("divbs", "digits") == 2
    assert "vit" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"peft_type": "NOPE"}', '{"a":' * 50_000 + "1" + "}" * 50_000])
def test_an_adapter_is_no_model(content: str, train: Train, vit: str, capsys: pytest.CaptureFixture[str]) -> None:
    edited(vit, "adapter_config.json", content)
    (Path(vit) / "config.json").unlink()
    assert train("divbs", "digits") == 2
    assert f"model_name_or_path: found an adapter in {vit!r}, allowed is a whole model" in capsys.readouterr().err
