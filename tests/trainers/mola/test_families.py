"""MoLA's mixin beside those of FER and RD: both losses, task ids in evaluation, cards, what does not go together."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments, ViTConfig, ViTModel

from hf_ext.adapters import MoLAConfig
from hf_ext.hub_cards import METHODS
from hf_ext.models import FERForImageClassification, RDForImageClassification
from hf_ext.trainers import (
    DivBSArguments,
    DivBSMixin,
    FERArguments,
    FERMixin,
    FERTrainer,
    FERTrainingConfig,
    MoLAArguments,
    MoLAMixin,
    MoLATrainer,
    MoLATrainingConfig,
    RDArguments,
    RDMixin,
    RDTrainer,
    RDTrainingConfig,
)


class MoLAFERTrainer(MoLAMixin, FERMixin, Trainer):
    pass


@dataclass
class MoLAFERConfig(MoLAArguments, FERArguments, TrainingArguments):
    pass


class MoLARDTrainer(MoLAMixin, RDMixin, Trainer):
    pass


@dataclass
class MoLARDConfig(MoLAArguments, RDArguments, TrainingArguments):
    pass


class FERFirst(FERMixin, MoLAMixin, Trainer):
    pass


class RDFirst(RDMixin, MoLAMixin, Trainer):
    pass


class Three(MoLAMixin, DivBSMixin, RDMixin, Trainer):
    pass


@dataclass
class ThreeConfig(DivBSArguments, MoLARDConfig):
    pass


@dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        both: Trainer of MoLA and the family, and its arguments.
        alone: those without MoLA.
        terms: of the family's loss, as they are logged.
        saved: modules that are trained in full beside the adapter.
        make: makes a model, the same at every call.
    """

    both: tuple[type[Any], type[Any]]
    alone: tuple[type[Any], type[Any]]
    terms: tuple[str, ...]
    saved: tuple[str, ...]
    make: Callable[[], Any]


def _fer() -> Family:
    def make() -> FERForImageClassification:
        torch.manual_seed(0)
        sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
        vision = ViTModel(ViTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2))
        texts = torch.randn(5, 12, generator=torch.Generator().manual_seed(5))
        names = ["neutral", "happy", "sad", "angry", "afraid"]
        return FERForImageClassification.from_backbones(vision, lambda _: texts, names, logit_scale=10.0)

    terms, saved = ("fer_match", "fer_transform", "fer_contrast"), ("projection", "transformation")
    return Family((MoLAFERTrainer, MoLAFERConfig), (FERTrainer, FERTrainingConfig), terms, saved, make)


def _rd(vit: Callable[..., Any]) -> Family:
    def make() -> RDForImageClassification:
        student = vit()
        torch.manual_seed(1)
        teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh())
        return RDForImageClassification.from_student(student, teacher, teacher_width=12)

    terms, saved = ("student_loss", "reprogrammed_loss", "cka_loss"), ("classifier", "phi")
    return Family((MoLARDTrainer, MoLARDConfig), (RDTrainer, RDTrainingConfig), terms, saved, make)


@pytest.fixture(params=["fer", "rd"])
def family(request: pytest.FixtureRequest, vit: Callable[..., Any]) -> Family:
    return _fer() if request.param == "fer" else _rd(vit)


def _adapted(family: Family, **config: Any) -> PeftModel:
    shared = {"target_modules": ["q_proj", "fc1"], "num_experts": 3, "r": 2, "modules_to_save": list(family.saved)}
    torch.manual_seed(3)
    return get_peft_model(family.make(), MoLAConfig(**shared, **config))


def _trainer(kinds: tuple[type[Any], type[Any]], model: Any, out: Path, data: Dataset, **extra: Any) -> Any:
    defaults = {"max_steps": 3, "learning_rate": 0.01, "optim": "sgd", "logging_steps": 1, "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 8}
    arguments = kinds[1](output_dir=str(out), **{**defaults, **quiet, **extra})
    return kinds[0](model=model, args=arguments, train_dataset=data, eval_dataset=data.select(range(20)))


def _history(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_familys_loss_and_the_term_of_the_router(
    family: Family, data: Dataset, tmp_path: Path, steps: int
) -> None:
    """One update follows the family's loss and TwD, at their scale under accumulation too."""
    sizes = {"max_steps": 1, "gradient_accumulation_steps": steps, "per_device_train_batch_size": 8 // steps}
    config = {"routing": "router", "router": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}
    logged = []
    for weight, kinds in ((0.5, family.both), (0.0, family.both), (0.0, family.alone)):
        model = _adapted(family, **config, twd_weight=weight)
        rows = data if kinds is family.both else data.remove_columns("task_ids")
        trainer = _trainer(kinds, model, tmp_path, rows, **sizes)
        trainer.train()
        logged.append(_history(trainer)[0])
        assert set(family.terms) <= set(logged[-1])
    with_term, without, alone = logged
    assert with_term["loss"] == pytest.approx(without["loss"] + 0.5 * with_term["twd_loss"], rel=1e-5)
    assert without == alone and "twd_loss" not in without


@pytest.mark.parametrize("routing", ["task", "router"])
def test_the_adapter_alone_is_trained_and_loads_again(
    family: Family, routing: str, data: Dataset, tmp_path: Path
) -> None:
    model = _adapted(family, routing=routing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = _trainer(family.both, model, tmp_path, data)
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all("mola_" in name or "modules_to_save" in name for name in changed)
    for part in ("mola_B", *(f"{name}.modules_to_save" for name in family.saved)):
        assert any(part in name for name in changed), part
    assert ("twd_loss" in _history(trainer)[0]) == (routing == "router")

    rows = trainer.eval_dataset[:]
    inputs = {"pixel_values": rows["pixel_values"], "mola_task_ids": rows["task_ids"]}
    logits = model.eval()(**inputs).logits
    predicted = torch.as_tensor(trainer.predict(trainer.eval_dataset).predictions)
    torch.testing.assert_close(predicted, logits, rtol=1e-4, atol=1e-5)
    trainer.save_model()
    loaded = PeftModel.from_pretrained(family.make(), str(tmp_path)).eval()
    assert torch.equal(loaded(**inputs).logits, logits)
    trainer.evaluate()
    trainer.create_model_card(model_name="mine")
    card = (tmp_path / "README.md").read_text()
    assert METHODS["mola"].paper in card and METHODS[family.alone[0].method].paper in card


def test_mola_alone_trains_it_by_the_models_own_loss(family: Family, data: Dataset, tmp_path: Path) -> None:
    models = [_adapted(family) for _ in range(2)]
    own = _trainer((MoLATrainer, MoLATrainingConfig), models[0], tmp_path, data)
    own.train()
    _trainer(family.both, models[1], tmp_path, data).train()
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_ids_that_the_data_bring_under_the_adapters_name(family: Family, data: Dataset, tmp_path: Path) -> None:
    """Without MoLA's mixin: task ids are one more input of the model."""
    rows = data.rename_column("task_ids", "mola_task_ids")
    models = [_adapted(family) for _ in range(2)]
    _trainer(family.alone, models[0], tmp_path, rows, remove_unused_columns=False).train()
    _trainer(family.both, models[1], tmp_path, data).train()
    assert _same(*models)


@pytest.mark.parametrize("routing", ["task", "router"])
def test_student_and_teacher_are_compared(
    routing: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    family = _rd(vit)
    trainer = _trainer(family.both, _adapted(family, routing=routing), tmp_path, data)
    trainer.train()
    found = trainer.compare_with_teacher()
    predicted = trainer.predict(trainer.eval_dataset).predictions.argmax(-1)
    right = (predicted == trainer.eval_dataset.with_format("numpy")["labels"][:]).mean()
    assert found["student_accuracy"] == pytest.approx(right) and "reprogrammed_accuracy" in found
    assert found["teacher_weights"] == 64 * 12 + 12


# ------------------------------------------------------------------------------------------------ refusals
def test_a_sum_over_tasks_has_no_place_in_a_loss_of_its_own(family: Family, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"mola_task_reduction: found 'sum' with .* or a method with a loss of its own"
    ):
        _trainer(family.both, _adapted(family), tmp_path, data, mola_task_reduction="sum")


def test_mola_goes_in_front(family: Family, data: Dataset, tmp_path: Path) -> None:
    kind = FERFirst if family.both[0] is MoLAFERTrainer else RDFirst
    message = rf"{kind.__name__}: found \w+ in front of MoLAMixin, allowed is MoLAMixin in front of it"
    with pytest.raises(ValueError, match=message):
        _trainer((kind, family.both[1]), _adapted(family), tmp_path, data)


def test_models_without_the_adapter_are_refused(family: Family, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model: found a \w+ with 0 active MoLA adapters, allowed is one"):
        _trainer(family.both, family.make(), tmp_path, data)


def test_a_third_method_beside_rd_is_refused(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="mola: found it combined with divbs, rd, allowed is no other method but mola"
    ):
        _trainer((Three, ThreeConfig), _adapted(_rd(vit)), tmp_path, data)
