"""Data that cannot work are refused at construction, all that is wrong with them at once; labels of other kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset
from peft import get_peft_model

from hf_ext.adapters import MoLAConfig
from hf_ext.trainers import (
    DISAMConfig,
    DISAMTrainer,
    DivBSConfig,
    DivBSTrainer,
    MoLATrainer,
    MoLATrainingConfig,
    TARFConfig,
    TARFTrainer,
)


def _arguments(kind: type[Any], out: Path, **extra: Any) -> Any:
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    return kind(str(out), max_steps=2, per_device_train_batch_size=8, **quiet, **extra)


@pytest.fixture
def rows(data: Dataset) -> Dataset:
    return data.rename_column("task_ids", "domain_ids")


def _mola(model: Any) -> Any:
    config = MoLAConfig(target_modules=["q_proj"], num_experts=3, r=2, modules_to_save=["classifier"])
    return get_peft_model(model, config)


def _without(data: Dataset, how: str) -> Dataset:
    if how == "format":
        return data.with_format("torch", columns=["pixel_values", "labels"])
    return data.with_transform(lambda batch: {name: batch[name] for name in ("pixel_values", "labels")})


@pytest.mark.parametrize("how", ["transform", "format"])
@pytest.mark.parametrize("sampler", ["random", "balanced"])
def test_rows_that_lose_their_domains(
    how: str, sampler: Any, vit: Callable[..., Any], rows: Dataset, tmp_path: Path
) -> None:
    args = _arguments(DISAMConfig, tmp_path, disam_domain_sampler=sampler)
    message = rf"domain_ids: found none in the rows of train_dataset, whose {how} \(set_{how}\) leaves the column out"
    with pytest.raises(ValueError, match=message):
        DISAMTrainer(vit(), args, train_dataset=_without(rows, how))


@pytest.mark.parametrize("part", ["train_dataset", "eval_dataset"])
def test_rows_that_lose_their_tasks(part: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"train_dataset": data, "eval_dataset": data, part: _without(data, "transform")}
    with pytest.raises(ValueError, match=f"task_ids: found none in the rows of {part}, whose transform"):
        MoLATrainer(_mola(vit()), _arguments(MoLATrainingConfig, tmp_path), **parts)


def test_a_transform_that_keeps_its_column(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    kept = data.with_format(None).with_transform(
        lambda batch: {name: torch.tensor(values) for name, values in batch.items()}
    )
    MoLATrainer(_mola(vit()), _arguments(MoLATrainingConfig, tmp_path), train_dataset=kept).train()


@pytest.mark.parametrize("kind", ["DISAM", "DivBS", "TARF", "MoLA"])
def test_data_without_rows(kind: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    trainers: dict[str, tuple[Any, Any]] = {
        "DISAM": (DISAMTrainer, DISAMConfig),
        "DivBS": (DivBSTrainer, DivBSConfig),
        "TARF": (TARFTrainer, TARFConfig),
        "MoLA": (MoLATrainer, MoLATrainingConfig),
    }
    trainer, config = trainers[kind]
    with pytest.raises(ValueError, match="train_dataset: found no rows, allowed are some"):
        trainer(_mola(vit()), _arguments(config, tmp_path), train_dataset=data.select([]))


def test_no_rows_to_evaluate_on(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """Are evaluated as Trainer does."""
    args = _arguments(MoLATrainingConfig, tmp_path)
    trainer = MoLATrainer(_mola(vit()), args, train_dataset=data, eval_dataset=data.select([]))
    assert "eval_runtime" in trainer.evaluate()


def test_all_that_a_stream_lacks_is_said_at_once(vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    named = rows.with_format(None).cast_column("domain_ids", ClassLabel(names=["a", "b", "c"]))
    text = named.to_list()
    for row in text:
        row["domain_ids"] = "abc"[row["domain_ids"]]
    stream = Dataset.from_list(text).to_iterable_dataset()
    args = _arguments(DISAMConfig, tmp_path, disam_domain_sampler="balanced")
    message = r"domain_ids: found names, .*; disam_num_domains: found None .*; disam_domain_sampler: found 'balanced'"
    with pytest.raises(ValueError, match=message):
        DISAMTrainer(vit(), args, train_dataset=stream)
    args = _arguments(DISAMConfig, tmp_path, disam_num_domains=3)
    with pytest.raises(ValueError, match="domain_ids: found names, allowed are integers or class labels"):
        DISAMTrainer(vit(), args, train_dataset=stream)
    with pytest.raises(ValueError, match="domain_ids: found names in train_dataset"):
        args = _arguments(MoLATrainingConfig, tmp_path, mola_task_column="domain_ids")
        MoLATrainer(_mola(vit()), args, train_dataset=stream)
    classes = named.with_format("torch").to_iterable_dataset()
    trainer = DISAMTrainer(vit(), _arguments(DISAMConfig, tmp_path), train_dataset=classes)
    trainer.train()
    assert "domain_loss/a" in trainer.state.log_history[0]


@pytest.mark.parametrize("extra", [{"forget_dataset": [0, 1]}, {"forget_dataset": [True] * 48}, {}], ids=str)
def test_rows_of_a_stream_have_no_numbers(
    extra: dict[str, Any], vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    args = _arguments(TARFConfig, tmp_path, **({} if extra else {"tarf_forget_column": "labels"}))
    with pytest.raises(ValueError, match=r"with a stream as train_dataset, allowed is .* tarf_selection='none'"):
        TARFTrainer(vit(), args, train_dataset=data.to_iterable_dataset(), **extra)


@pytest.mark.parametrize("dtype", ["integers", "several values"])
def test_labels_of_a_regression(dtype: str, vit: Callable[..., Any], rows: Dataset, tmp_path: Path) -> None:
    """Integers are numbers, too, and several values a row are no labels of several classes."""
    outputs, labels = 1, rows["labels"][:]
    if dtype == "several values":
        outputs, labels = 2, torch.stack([labels, -labels], dim=1).float()
    table = rows.with_format(None).remove_columns("labels").add_column("labels", labels.tolist()).with_format("torch")
    model = vit(num_labels=outputs, problem_type="regression")
    args = _arguments(DISAMConfig, tmp_path, disam_lambda=0.5, train_sampling_strategy="sequential")
    expected = (model.eval()(table["pixel_values"][:8]).logits - labels[:8].reshape(8, -1)).square().mean(dim=1)
    trainer = DISAMTrainer(model, args, train_dataset=table)
    trainer.train()
    domains, logged = rows["domain_ids"][:8], trainer.state.log_history[0]
    for domain in domains.unique().tolist():
        mean = expected[domains == domain].mean().item()
        assert logged[f"domain_loss/{domain}"] == pytest.approx(mean, rel=1e-5)
