"""Data that cannot work are refused at construction, all that is wrong with them at once; labels of other kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset
from peft import get_peft_model
from transformers import ViTConfig, ViTModel

from hf_ext.adapters import MoLAConfig
from hf_ext.models import FERForImageClassification, RDForImageClassification
from hf_ext.trainers import (
    DISAMConfig,
    DISAMTrainer,
    DivBSConfig,
    DivBSTrainer,
    FERTrainer,
    FERTrainingConfig,
    MoLATrainer,
    MoLATrainingConfig,
    RDTrainer,
    RDTrainingConfig,
    TARFConfig,
    TARFTrainer,
)
from hf_ext.trainers.labels_by_name import labels_by_name


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


# ------------------------------------------------------------------------------------------------ names of classes
NAMES = ["neutral", "happy", "sad", "angry", "afraid"]


def _matcher() -> FERForImageClassification:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
    vision = ViTModel(ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))
    texts = torch.randn(5, 12, generator=torch.Generator().manual_seed(5))
    return FERForImageClassification.from_backbones(vision, lambda _: texts, NAMES, logit_scale=10.0)


def _student(vit: Callable[..., Any]) -> RDForImageClassification:
    student = vit(id2label=dict(enumerate(NAMES)), label2id={name: number for number, name in enumerate(NAMES)})
    torch.manual_seed(1)
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12))
    return RDForImageClassification.from_student(student, teacher, teacher_width=12)


def _labelled(data: Dataset, names: list[str], order: list[str], labels: list[int] | None = None) -> Dataset:
    """Rows of the classes `names`, which they count in this order."""
    ids = [order.index(names[label]) for label in (data["labels"][:].tolist() if labels is None else labels)]
    rows = data.with_format(None).remove_columns("labels").add_column("labels", ids)
    return rows.cast_column("labels", ClassLabel(names=order)).with_format("torch")


@pytest.mark.parametrize("order", [NAMES[::-1], ["Sad", "Happy", "Angry", "Afraid", "Neutral"]], ids=["other", "case"])
@pytest.mark.parametrize("method", ["fer", "rd"])
def test_classes_in_another_order_go_by_name(
    method: str, order: list[str], vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    """Losses, weights, labels and logits are those of data that count as the model does."""
    kind, config = (FERTrainer, FERTrainingConfig) if method == "fer" else (RDTrainer, RDTrainingConfig)
    found = []
    for rows in (_labelled(data, NAMES, NAMES), _labelled(data, NAMES, order) if order[0] == NAMES[-1] else None):
        if rows is None:
            rows = _labelled(data, [name.capitalize() for name in NAMES], order)
        model = _matcher() if method == "fer" else _student(vit)
        args = _arguments(config, tmp_path)
        trainer: Any = kind(model, args, train_dataset=rows, eval_dataset={"one": rows})
        trainer.train()
        found.append((trainer.state.log_history[0]["loss"], trainer.evaluate(), trainer.predict(rows)))
    (loss, evaluated, predicted), (other_loss, other_evaluated, other_predicted) = found
    assert loss == other_loss and evaluated["eval_one_loss"] == other_evaluated["eval_one_loss"]
    assert predicted.label_ids.tolist() == other_predicted.label_ids.tolist() == data["labels"][:].tolist()
    assert (predicted.predictions == other_predicted.predictions).all()


def test_some_of_the_classes_go_by_name(data: Dataset, tmp_path: Path) -> None:
    rows = _labelled(data, ["sad", "happy"], ["sad", "happy"], [label % 2 for label in data["labels"][:].tolist()])
    trainer = FERTrainer(_matcher(), _arguments(FERTrainingConfig, tmp_path), train_dataset=rows)
    trainer.train()
    assert trainer.predict(rows).label_ids.tolist() == [2 - label % 2 for label in data["labels"][:].tolist()]


def test_classes_of_other_names(data: Dataset, tmp_path: Path) -> None:
    args = _arguments(FERTrainingConfig, tmp_path)
    other = ["glad", *NAMES[1:]]
    with pytest.raises(
        ValueError, match=r"labels: found the classes glad, happy, .* in train_dataset, allowed are those"
    ):
        FERTrainer(_matcher(), args, train_dataset=_labelled(data, other, other))
    numbers = list("01234")
    with pytest.warns(
        UserWarning, match="of the model neutral, happy, sad, angry, afraid: they are taken by their ids"
    ):
        FERTrainer(_matcher(), args, train_dataset=_labelled(data, numbers, numbers))
    turned = _labelled(data, NAMES, NAMES[::-1]).with_transform(lambda batch: batch)
    with pytest.raises(ValueError, match="with a transform, allowed is the model's order"):
        FERTrainer(_matcher(), args, train_dataset=turned)
    unlabelled = labels_by_name(
        _labelled(data, NAMES, NAMES[::-1])
        .with_format(None)
        .map(lambda row, i: {"labels": row["labels"] if i else -1}, with_indices=True),
        NAMES,
        "rows",
    )
    assert int(unlabelled[0]["labels"]) == -1
