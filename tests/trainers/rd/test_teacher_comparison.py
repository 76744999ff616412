"""RD's student next to its teacher: numbers that are right, nothing left behind, cards that hold them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from torch import Tensor, nn

from hf_ext.commands.loading import accuracy
from hf_ext.models import RDForImageClassification
from hf_ext.trainers import RDTrainer, RDTrainingConfig

STUDENTS = {"student_accuracy", "student_ms_per_image", "student_weights"}
TEACHERS = {"teacher_ms_per_image", "teacher_weights"}
ALL = STUDENTS | TEACHERS | {"reprogrammed_accuracy"}
MakeTrainer = Callable[..., RDTrainer]


def _teacher() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Dropout(0.5), nn.BatchNorm1d(12))


@pytest.fixture
def make_trainer(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> MakeTrainer:
    """A Trainer around an RD model, the same at every call, with 17 rows to evaluate on in batches of 7."""

    def make(teacher: Any = None, parts: Any = None, model: Any = None, **arguments: Any) -> RDTrainer:
        settings = {"teacher_width": 12, **(model or {})}
        student, teacher = vit(hidden_dropout_prob=0.5), _teacher() if teacher is None else teacher
        torch.manual_seed(2)
        rd = RDForImageClassification.from_student(student, teacher, **settings)
        quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
        sizes = {"max_steps": 2, "learning_rate": 0.01, "per_device_eval_batch_size": 7}
        args = RDTrainingConfig(output_dir=str(tmp_path), **{**quiet, **sizes, **arguments})
        given = {"train_dataset": data, "eval_dataset": data.select(range(17)), **(parts or {})}
        return RDTrainer(model=rd, args=args, **given)

    return make


def _with_features(rows: Dataset, teacher: nn.Module) -> Dataset:
    with torch.no_grad():
        features = teacher.eval()(torch.stack(list(rows["pixel_values"]))).numpy()
    return Dataset.from_dict({**rows.with_format("numpy")[:], "teacher_features": features}).with_format("torch")


def _share(logits: Tensor, labels: Tensor) -> float:
    return sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)) / len(labels)


# ------------------------------------------------------------------------------------------------ the numbers
def test_the_numbers_are_right_and_logged(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.train()
    found = trainer.compare_with_teacher()
    model: Any = trainer.model.eval()
    rows = trainer.eval_dataset[:]
    with torch.no_grad():
        student = model.student(rows["pixel_values"]).logits
        reprogrammed = model.student.classifier(model.phi(model.teacher(rows["pixel_values"])))
    assert set(found) == ALL
    assert found["student_accuracy"] == pytest.approx(_share(student, rows["labels"]))
    assert found["reprogrammed_accuracy"] == pytest.approx(_share(reprogrammed, rows["labels"]))
    assert found["student_ms_per_image"] > 0 and found["teacher_ms_per_image"] > 0
    assert found["teacher_weights"] == 64 * 12 + 12 + 12 + 12
    assert found["student_weights"] == sum(value.numel() for value in model.student.state_dict().values())
    logged = trainer.state.log_history[-1]
    assert {name: logged[name] for name in ALL} == found and logged["step"] == 2


def test_in_the_trainers_precision(make_trainer: MakeTrainer) -> None:
    seen: list[torch.dtype] = []
    trainer = make_trainer(bf16=True)
    model: Any = trainer.model
    for linear in (model.student.classifier, model.teacher[1]):
        linear.register_forward_hook(lambda *given: seen.append(given[-1].dtype))
    assert set(trainer.compare_with_teacher()) == ALL
    assert set(seen) == {torch.bfloat16}


def test_other_data_are_compared_on(make_trainer: MakeTrainer, data: Dataset) -> None:
    trainer = make_trainer()
    model: Any = trainer.model.eval()
    with torch.no_grad():
        predicted = model(torch.stack(list(data["pixel_values"]))).logits.argmax(-1)
    right = data.map(lambda _, number: {"labels": int(predicted[number])}, with_indices=True)
    assert trainer.compare_with_teacher(right)["student_accuracy"] == 1
    trainer.eval_dataset = {"right": right, "wrong": right.map(lambda row: {"labels": (int(row["labels"]) + 1) % 5})}
    assert trainer.compare_with_teacher("right")["student_accuracy"] == 1
    assert trainer.compare_with_teacher("wrong")["student_accuracy"] == 0


def test_nothing_is_left_behind(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    model: Any = trainer.model.train()
    model.student.vit.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: value.clone() for part in (model, model.teacher) for name, value in part.state_dict().items()}
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    trainer.compare_with_teacher()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert {name: module.training for name, module in model.named_modules()} == modes
    for part in (model, model.teacher):
        assert all(torch.equal(value, weights[name]) for name, value in part.state_dict().items())
    assert not model.teacher.training and not any(weight.requires_grad for weight in model.teacher.parameters())


def test_modes_come_back_after_a_failure(make_trainer: MakeTrainer, data: Dataset) -> None:
    trainer = make_trainer()
    trainer.model.train()
    with pytest.raises(ValueError, match="labels: found none, allowed are classes"):
        trainer.compare_with_teacher(data.remove_columns("labels"))
    assert all(module.training for module in trainer.model.modules()) and trainer.teacher_comparison is None


# ------------------------------------------------------------------------------------------------ teachers
def test_a_black_box_takes_time_and_has_no_size(make_trainer: MakeTrainer) -> None:
    teacher = _teacher().eval()
    found = make_trainer(lambda pixels: teacher(pixels)).compare_with_teacher()
    assert set(found) == ALL - {"teacher_weights"}
    assert found["reprogrammed_accuracy"] == make_trainer().compare_with_teacher()["reprogrammed_accuracy"]


def test_of_a_column_of_features_there_is_the_accuracy_alone(make_trainer: MakeTrainer, data: Dataset) -> None:
    rows = _with_features(data.select(range(17)), _teacher())
    expected = make_trainer().compare_with_teacher()
    trainer = make_trainer(parts={"eval_dataset": rows}, model={"teacher_inputs": "features"})
    found = trainer.compare_with_teacher()
    assert set(found) == ALL - TEACHERS
    assert all(found[name] == expected[name] for name in ("student_accuracy", "reprogrammed_accuracy"))


def test_features_of_the_rows_go_first(make_trainer: MakeTrainer, data: Dataset) -> None:
    rows = _with_features(data.select(range(17)), _teacher())
    trainer = make_trainer(lambda pixels: torch.zeros(len(pixels), 12), {"eval_dataset": rows})
    found = trainer.compare_with_teacher()
    assert found["reprogrammed_accuracy"] == make_trainer().compare_with_teacher()["reprogrammed_accuracy"]
    assert found["teacher_ms_per_image"] > 0


def test_pixel_values_of_the_teachers_own(make_trainer: MakeTrainer, data: Dataset) -> None:
    rows = data.select(range(17))
    own = Dataset.from_dict({**rows.with_format("numpy")[:], "teacher_pixel_values": -np.array(rows["pixel_values"])})
    teacher = _teacher().eval()
    found = make_trainer(
        lambda pixels: teacher(-pixels),
        {"eval_dataset": own.with_format("torch")},
        {"teacher_inputs": "pixel_values"},
    ).compare_with_teacher()
    assert found["reprogrammed_accuracy"] == make_trainer().compare_with_teacher()["reprogrammed_accuracy"]


@pytest.mark.parametrize("settings", [{"rd_method": "cka"}, {"rd_method": "student"}, {"rd_alpha": 0, "rd_gamma": 0}])
def test_where_nothing_trains_phi_its_features_count_nothing(make_trainer: MakeTrainer, settings: Any) -> None:
    assert set(make_trainer(**settings).compare_with_teacher()) == STUDENTS | TEACHERS


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "eval_dataset: found none, allowed is one data set, or the name of one of several"),
        ("several", r"eval_dataset: found several \(a, b\), allowed is one data set, or the name"),
        ("empty", "eval_dataset: found no rows, allowed are data with one or more"),
    ],
)
def test_data_that_cannot_be_compared_on(
    make_trainer: MakeTrainer, data: Dataset, rows: str | None, message: str
) -> None:
    given = {"several": DatasetDict(a=data, b=data), "empty": data.select([]), None: None}[rows]
    with pytest.raises(ValueError, match=message):
        make_trainer(parts={"eval_dataset": given}).compare_with_teacher()


def test_without_a_teacher_there_is_nothing_to_compare_with(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(rd_method="student")
    model: Any = trainer.model
    model._teacher = None
    with pytest.raises(ValueError, match="teacher: found none attached and no teacher_features in the batch, allowed"):
        trainer.compare_with_teacher()
    with pytest.raises(ValueError, match="teacher: found 'features' as teacher_inputs and no teacher_features"):
        make_trainer(model={"teacher_inputs": "features"}).compare_with_teacher()


# ------------------------------------------------------------------------------------------------ the card
def test_the_card_holds_them(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.train()
    found = trainer.compare_with_teacher()
    trainer.save_model()
    trainer.create_model_card(model_name="mine")
    card = ModelCard.load(tmp_path / "README.md")
    for row in (
        f"| **student** | accuracy | {found['student_accuracy']:.3f} | 1 |",
        f"| reprogrammed features | accuracy | {found['reprogrammed_accuracy']:.3f} | 1 |",
        f"| **student** | million weights | {found['student_weights'] / 1e6:.3f} | 1 |",
        f"| teacher | million weights | {found['teacher_weights'] / 1e6:.3f} | 1 |",
    ):
        assert row in card.text
    times = [line for line in card.text.splitlines() if "ms per image" in line and line.startswith("|")]
    hardware = trainer.teacher_comparison.hardware
    assert len(times) == 2 and "torch threads: 1" in hardware
    assert all(f"(median, batches of 7, {hardware})" in line and "step" not in line for line in times)
    assert card.data.eval_results is None  # no evaluation took place

    trainer.args.max_steps = 4
    trainer.train()
    trainer.create_model_card(model_name="mine")
    assert "| teacher | million weights | 0.001 (step 2) | 1 |" in (tmp_path / "README.md").read_text()


def test_the_students_accuracy_is_shown_once(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(parts={"compute_metrics": accuracy})
    trainer.train()
    trainer.evaluate()
    trainer.compare_with_teacher()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "| **RD** | accuracy |" in card and "| **student** | accuracy |" not in card
    assert "| **student** | million weights |" in card and "results" not in {path.stem for path in tmp_path.iterdir()}


def test_a_model_that_was_trained_before_is_compared_too(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trained = make_trainer(learning_rate=0.02)
    trained.train()
    trained.save_model()
    trained.create_model_card()
    again = make_trainer()
    again.model.load_state_dict(trained.model.state_dict())
    again.compare_with_teacher()
    again.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "| learning_rate | 0.02 |" in card and "reprogrammed features | accuracy" in card
