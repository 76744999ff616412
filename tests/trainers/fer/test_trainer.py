"""The FER matcher's Trainer: terms over the whole batch of an update, logged; arguments, cards, other methods."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, ViTConfig, ViTModel

from hf_ext.functional import fer_losses
from hf_ext.models import FERForImageClassification
from hf_ext.trainers import (
    DISAMArguments,
    DISAMConfig,
    DISAMMixin,
    DISAMTrainer,
    DivBSArguments,
    DivBSConfig,
    DivBSMixin,
    DivBSTrainer,
    FERArguments,
    FERMixin,
    FERTrainer,
    FERTrainingConfig,
)

NAMES = ["neutral", "happy", "sad", "angry", "afraid"]


def _model(**options: Any) -> FERForImageClassification:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
    vision = ViTModel(ViTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2))
    texts = torch.randn(5, 12, generator=torch.Generator().manual_seed(5))
    options = {"logit_scale": 10.0, **options}
    return FERForImageClassification.from_backbones(vision, lambda _: texts, NAMES, **options)


def _arguments(out: Path, kind: type[Any] = FERTrainingConfig, **extra: Any) -> Any:
    defaults = {"max_steps": 4, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 8}
    return kind(output_dir=str(out), **{**defaults, **quiet, **extra})


def _difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def _history(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("pairs", ["all", "paired"])
@pytest.mark.parametrize("options", [{}, {"learn_logit_scale": True, "lambda_c": 0.5}], ids=["fixed", "learnt"])
def test_one_large_batch_is_many_small_ones(
    pairs: Any, options: dict[str, Any], data: Dataset, tmp_path: Path
) -> None:
    models, histories = [_model(**options), _model(**options), _model(**options, contrast_pairs=pairs)], []
    for model, sizes in zip(models[:2], ((8, 1), (2, 4)), strict=True):
        arguments = _arguments(
            tmp_path,
            per_device_train_batch_size=sizes[0],
            gradient_accumulation_steps=sizes[1],
            fer_contrast_pairs=pairs,
        )
        trainer = FERTrainer(model, arguments, train_dataset=data)
        trainer.train()
        histories.append(_history(trainer))
    assert _difference(models[0], models[1]) < 2e-6
    assert _difference(models[0], _model(**options)) > 1e-3
    for one, two in zip(*histories, strict=True):
        for name in ("loss", "fer_match", "fer_transform", "fer_contrast", "grad_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-4), name
    # without micro-batches it is what a plain Trainer does with the model's own loss
    Trainer(models[2], _arguments(tmp_path, TrainingArguments), train_dataset=data).train()
    assert _difference(models[0], models[2]) < 2e-6


def test_what_is_logged_are_the_terms(data: Dataset, tmp_path: Path) -> None:
    model = _model()
    rows = data[:]
    model.eval()
    with torch.no_grad():
        found = model(rows["pixel_values"], output_features=True)
    expected = fer_losses(
        found.features,
        found.neutral_features,
        found.text_features,
        rows["labels"],
        neutral_id=0,
        logit_scale=10.0,
        lambda_t=0.5,
        lambda_c=0.0,
    )
    arguments = _arguments(
        tmp_path,
        max_steps=1,
        per_device_train_batch_size=12,
        gradient_accumulation_steps=4,
        fer_lambda_t=0.5,
        fer_lambda_c=0.0,
    )
    trainer = FERTrainer(model, arguments, train_dataset=data)
    trainer.train()
    (entry,) = _history(trainer)
    for name, term in (("loss", "total"), ("fer_match", "match"), ("fer_transform", "transform")):
        assert entry[name] == pytest.approx(expected[term].item(), rel=1e-4), name
    assert entry["fer_contrast"] == pytest.approx(expected["contrast"].item(), rel=1e-4)


def test_faces_without_a_label_are_left_out(data: Dataset, tmp_path: Path) -> None:
    rows = list(data.select(range(8)))
    unknown = [{**row, "labels": torch.tensor(-100)} for row in data.select(range(8, 16))]
    models = [_model(), _model()]
    for model, given, size in ((models[0], rows, 8), (models[1], rows + unknown, 16)):
        arguments = _arguments(tmp_path, max_steps=1, per_device_train_batch_size=size)
        FERTrainer(model, arguments, train_dataset=given).train()
    assert _difference(*models) < 1e-6


def test_only_neutral_faces_in_an_update(data: Dataset, tmp_path: Path) -> None:
    neutral = data.map(lambda row: {"labels": 0})
    model = _model()
    trainer = FERTrainer(model, _arguments(tmp_path), train_dataset=neutral)
    trainer.train()
    assert all(entry["fer_transform"] == entry["fer_contrast"] == 0 for entry in _history(trainer))
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: found 0.1, allowed is 0"),
        ({"fer_lambda_t": -1.0}, "fer_lambda_t: found -1.0"),
        ({"fer_contrast_pairs": "some"}, "fer_contrast_pairs: found 'some'"),
    ],
)
def test_what_cannot_work(options: dict[str, Any], message: str, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FERTrainer(_model(), _arguments(tmp_path, **options), train_dataset=data)


def test_other_models_and_losses_are_refused(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model: found a ViTForImageClassification, allowed is a FERFor"):
        FERTrainer(vit(), _arguments(tmp_path), train_dataset=data)
    with pytest.raises(ValueError, match="compute_loss_func: found a function"):
        FERTrainer(_model(), _arguments(tmp_path), train_dataset=data, compute_loss_func=lambda *_: 0)


def test_data_without_classes_are_refused(data: Dataset, tmp_path: Path) -> None:
    def make(rows: Any, **parts: Any) -> FERTrainer:
        return FERTrainer(_model(), _arguments(tmp_path), train_dataset=rows, **parts)

    without = data.remove_columns("labels")
    with pytest.raises(
        ValueError, match="labels: found none among the columns pixel_values, task_ids of the training"
    ):
        make(without)
    with pytest.raises(
        ValueError, match="label: found 9 in the training data, allowed are 0 to 4, the model's classes"
    ):
        make(without.add_column("label", [0, -100, 9] * 16).shuffle(seed=0))
    with pytest.raises(ValueError, match=r"labels: found Value.*'a', allowed are 0 to 4"):
        make(without.add_column("labels", ["a"] * 48))
    make(without.add_column("label", [0, -100, 4] * 16)).train()
    make(without.with_transform(lambda rows: {**rows, "labels": [0] * len(rows["task_ids"])}))
    make(without, data_collator=lambda rows: {"labels": torch.zeros(len(rows))})
    with pytest.raises(ValueError, match="labels: found none, allowed are classes"):
        make(without.with_transform(dict)).train()


def test_bfloat16_lora_and_the_card(data: Dataset, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["projection", "transformation"])
    model = get_peft_model(_model(), config)
    arguments = _arguments(tmp_path, bf16=True, learning_rate=0.01)
    trainer = FERTrainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert all(entry["loss"] > 0 and entry["fer_transform"] > 0 for entry in _history(trainer))
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model()
    trainer.create_model_card(model_name="faces")
    card = (tmp_path / "README.md").read_text()
    assert "An expression is not an emotion" in card and "contrast_pairs | all" in card
    assert (tmp_path / "texts.png").is_file()


def test_a_whole_model_is_saved_with_its_card_and_code(data: Dataset, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    trainer = FERTrainer(_model(), arguments, train_dataset=data)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="faces")
    assert {"modeling_fer.py", "config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    card = (tmp_path / "README.md").read_text()
    assert "AutoModelForImageClassification.from_pretrained" in card and "happy facial expression" in card
    resumed = _model()
    FERTrainer(resumed, arguments, train_dataset=data).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert _difference(resumed, trainer.model) == 0


def test_without_a_neutral_class_the_card_says_what_is_off(data: Dataset, tmp_path: Path) -> None:
    model = _model()
    model.config.neutral_id = None
    trainer = FERTrainer(model, _arguments(tmp_path), train_dataset=data)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "| losses | the cross-entropy alone: without a neutral class the other two are off |" in card
    assert "| lambda_s | 1 |" in card and "| lambda_t |" not in card and "| fer_lambda" not in card


def test_an_evaluation_alone_leaves_what_the_card_says_of_the_training(data: Dataset, tmp_path: Path) -> None:
    trained = FERTrainer(_model(), _arguments(tmp_path), train_dataset=data)
    trained.train()
    trained.save_model()
    trained.create_model_card()
    again = FERTrainer(trained.model, _arguments(tmp_path, learning_rate=0.5), eval_dataset=data)
    again.evaluate()
    again.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "| learning_rate | 0.1 |" in card and "| **FER matcher** | loss |" in card


class _Chosen(DivBSMixin, FERMixin, Trainer):
    pass


@dataclass
class _ChosenConfig(DivBSArguments, FERArguments, TrainingArguments):
    pass


class _Sharp(DISAMMixin, FERMixin, Trainer):
    pass


@dataclass
class _SharpConfig(DISAMArguments, FERArguments, TrainingArguments):
    pass


def test_disam_over_the_losses_of_the_whole_update(data: Dataset, tmp_path: Path) -> None:
    rows = data.rename_column("task_ids", "domain_ids")
    models = []
    for size, steps, rho in ((8, 1, 0.05), (2, 4, 0.05), (8, 1, 0.0)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "disam_rho": rho}
        models.append(_model())
        arguments = _arguments(tmp_path, _SharpConfig, max_steps=2, learning_rate=0.01, disam_lambda=1.0, **options)
        _Sharp(models[-1], arguments, train_dataset=rows).train()
    assert _difference(models[0], models[1]) < 2e-6 < 1e-5 < _difference(models[0], models[2])
    plain = _model()
    arguments = _arguments(tmp_path, max_steps=2, learning_rate=0.01)
    FERTrainer(plain, arguments, train_dataset=rows).train()
    assert _difference(plain, models[2]) == 0


def test_other_methods_train_it(data: Dataset, tmp_path: Path) -> None:
    domains = data.rename_column("task_ids", "domain_ids")
    runs: list[tuple[type[Any], Any, Dataset]] = [
        (DISAMTrainer, _arguments(tmp_path, DISAMConfig, disam_rho=0.05), domains),
        (DivBSTrainer, _arguments(tmp_path, DivBSConfig, divbs_ratio=0.5), data),
        (_Chosen, _arguments(tmp_path, _ChosenConfig, divbs_ratio=0.5), data),
    ]
    models = []
    for kind, arguments, rows in runs:
        model = _model()
        models.append(model)
        trainer = kind(model, arguments, train_dataset=rows)
        trainer.train()
        assert _difference(model, _model()) > 1e-3, kind
        assert torch.isfinite(torch.tensor([entry["loss"] for entry in _history(trainer)])).all()
    assert _difference(models[1], models[2]) < 1e-6  # of the candidates only those that are trained on count
