"""A loss or gradient that is not finite stops every method before it changes anything, and the error says why."""

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from hf_ext.data.rows import WithColumns
from hf_ext.trainers import MethodMixin, RDTrainer, RDTrainingConfig
from hf_ext.trainers.finite import NonFiniteError

SCRIPTS = Path(__file__).parent / "scripts"
_DISAM = {"disam_rho": 0.5, "disam_lambda": 1.0, "disam_domain_weights": "running"}
#: method, arguments of training, options of its script
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mola, task": ("mola", {}, {}),
    "mola, router": ("mola", {}, {"adapter": {"routing": "router"}}),  # with a BatchNorm
    "mola, sum": ("mola", {"mola_task_reduction": "sum"}, {}),
    "disam": ("disam", _DISAM, {}),
    "disam, accumulating": ("disam", {**_DISAM, "gradient_accumulation_steps": 2}, {}),
    "divbs": ("divbs", {"divbs_ratio": 0.5}, {}),
    "divbs, loss": ("divbs", {"divbs_ratio": 0.5, "divbs_strategy": "loss"}, {}),
    "fer": ("fer", {}, {}),
    "rd": ("rd", {"rd_beta": 0.5}, {}),
    "tarf": ("tarf", {"tarf_selection": "none", "tarf_t1": 0.0, "tarf_k": 0.01}, {}),
}
BAD_ROW = 43  # of 48


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Of a method, from its script: the Trainer's class, its arguments', keywords, and the data."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def of(name: str) -> tuple[Any, Any, dict[str, Any], Dataset]:
        method, training, options = METHODS[name]
        torch.manual_seed(0)
        built = importlib.import_module(method).build({"training": training, **options})
        return (*built, importlib.import_module("train").dataset())

    yield of
    for path in SCRIPTS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def _with_bad_row(data: Dataset, value: float) -> Dataset:
    pixels = np.asarray(data.with_format("numpy")[:]["pixel_values"])
    pixels[BAD_ROW, 0, 3, 3] = value
    columns = {**data.with_format("numpy")[:], "pixel_values": pixels}
    return Dataset.from_dict(columns).with_format("torch")


def _arguments(kind: type[Any], out: Path, **extra: Any) -> Any:
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    order = {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant", "num_train_epochs": 1}
    sizes = {"per_device_train_batch_size": 4, "learning_rate": 0.01}
    return kind(output_dir=str(out), **{**quiet, **order, **sizes, **extra})


def _state(trainer: Trainer) -> list[torch.Tensor]:
    """Weights, buffers and what the optimizer remembers."""
    moments = [value for state in trainer.optimizer.state_dict()["state"].values() for value in state.values()]
    return [*trainer.model.state_dict().values(), *moments]


@pytest.mark.parametrize("name", METHODS)
def test_weights_and_optimizer_are_those_before_the_step(name: str, parts: Any, tmp_path: Path) -> None:
    kind, config, keywords, data = parts(name)
    arguments = _arguments(config, tmp_path, **METHODS[name][1])
    trainer = kind(args=arguments, train_dataset=_with_bad_row(data, math.nan), **keywords)
    with pytest.raises(NonFiniteError, match=r"loss .*not finite in step \d+") as stopped:
        trainer.train()
    steps, message = trainer.state.global_step, str(stopped.value)
    assert f"in step {steps + 1}" in message and "'" not in message
    assert "Not finite: pixel_values in rows " in message
    assert steps > 0 and all(math.isfinite(row["loss"]) for row in trainer.state.log_history)
    assert all(weight.grad is None for weight in trainer.model.parameters())
    kind, config, keywords, data = parts(name)
    reference = kind(args=arguments, train_dataset=data, callbacks=[Stop(steps)], **keywords)
    reference.train()
    assert reference.state.global_step == steps
    for one, other in zip(_state(trainer), _state(reference), strict=True):
        assert torch.equal(one, other)


def test_the_term_is_named(parts: Any, tmp_path: Path) -> None:
    kind, config, keywords, data = parts("rd")
    trainer = kind(args=_arguments(config, tmp_path), train_dataset=data, **keywords)
    trainer.model.config.gamma = 1.0
    with torch.no_grad():
        trainer.model.teacher[1].weight[0] = math.inf
    with pytest.raises(NonFiniteError, match=r"not finite in step 1 \(found nan for reprogrammed_loss.*Nothing of"):
        trainer.train()


# ------------------------------------------------------------------------------------------------ the mixin
class Plain(MethodMixin, Trainer):
    pass


class _Breaks(nn.Module):
    """One weight whose loss, or only its gradient, is not finite in the third step."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.weight, self.norm, self.where, self.calls = nn.Parameter(torch.ones(1)), nn.BatchNorm1d(1), where, 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += self.training
        loss = (self.norm(x[:, None]) * self.weight).square().mean()
        if self.calls == 3:
            loss = loss + {
                "loss": torch.tensor(math.inf),  # no gradient shows it
                "gradient": (self.weight - self.weight.detach()).abs().sqrt().sum(),
            }.get(self.where, torch.tensor(0.0))
        return {"loss": loss}


def _breaking(where: str, out: Path, **extra: Any) -> Plain:
    rows = Dataset.from_dict({"x": np.linspace(-1, 1, 40).astype("float32")}).with_format("torch")
    return Plain(_Breaks(where), _arguments(TrainingArguments, out, **extra), train_dataset=rows)


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_is_named(where: str, filtered: bool, tmp_path: Path) -> None:
    """Whatever Trainer would have logged in its place."""
    options: dict[str, Any] = {"logging_nan_inf_filter": filtered}
    trainer = _breaking(where, tmp_path, **options)
    with pytest.raises(FloatingPointError, match=rf"^the {where} is not finite in step 3; weights .* lower the lear"):
        trainer.train()
    reference = _breaking("nowhere", tmp_path, max_steps=2)
    reference.train()
    for one, other in zip(_state(trainer), _state(reference), strict=True):
        assert torch.equal(one, other)


def test_an_update_of_several_micro_batches(tmp_path: Path) -> None:
    trainer = _breaking("loss", tmp_path, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="not finite in step 2"):
        trainer.train()
    assert trainer.model.calls == 4 and trainer.state.global_step == 1


def test_a_loss_scaler_may_leave_out_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinite gradients are its business, a loss that is not finite is nobody's."""
    trainer = _breaking("gradient", tmp_path, max_grad_norm=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
    monkeypatch.setattr(trainer.accelerator, "native_amp", True)
    trainer.train()
    assert trainer.state.global_step == 10 and trainer.model.weight.isfinite().all()
    trainer = _breaking("loss", tmp_path, max_grad_norm=0.0)
    monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
    with pytest.raises(NonFiniteError, match="the loss is not finite in step 3"):
        trainer.train()


def test_weights_that_were_not_finite_before(tmp_path: Path) -> None:
    trainer = _breaking("nowhere", tmp_path)
    with torch.no_grad():
        trainer.model.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="Not finite: the model's weights before any step, weight first"):
        trainer.train()


def test_weights_that_a_step_made_so(tmp_path: Path) -> None:
    """Of a finite gradient: the next step finds them, and does not say that they came so."""
    trainer = _breaking("nowhere", tmp_path, learning_rate=3e38, max_grad_norm=0.0, optim="sgd")
    said = r"not finite in step \d; .*Not finite: the model's weights as step \d left them \(lower the learning rate"
    with pytest.raises(NonFiniteError, match=said):
        trainer.train()


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_options_of_the_update_are_numbers(name: str, value: float, tmp_path: Path) -> None:
    if name == "max_grad_norm" and value == math.inf:  # no clipping
        assert _breaking("nowhere", tmp_path, **{name: value}).train().global_step == 10
        return
    with pytest.raises(ValueError, match=f"{name}: found {value}, allowed are finite numbers"):
        _breaking("nowhere", tmp_path, **{name: value})


# ------------------------------------------------------------------------------------------------ looked at before
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_features_of_a_teacher_are_looked_at_before(value: float, added: bool, parts: Any, tmp_path: Path) -> None:
    *_, keywords, data = parts("rd")
    features = np.zeros((48, 12), dtype="float32")
    features[BAD_ROW, 7] = value
    rows: Any = WithColumns(data, teacher_features=features)
    if not added:
        rows = data.with_format(None).add_column("teacher_features", features.tolist()).with_format("torch")
    with pytest.raises(ValueError, match=f"teacher_features: found values that are NaN or infinite in row {BAD_ROW} "):
        RDTrainer(args=_arguments(RDTrainingConfig, tmp_path), train_dataset=rows, **keywords)
    without = _arguments(RDTrainingConfig, tmp_path, rd_method="student")
    RDTrainer(args=without, train_dataset=rows, **keywords)  # which does not read them


def test_losses_that_decide_what_is_left_out(parts: Any, tmp_path: Path) -> None:
    kind, config, keywords, data = parts("tarf")
    trainer = kind(
        args=_arguments(config, tmp_path, tarf_selection="samples", tarf_t1=0.5, tarf_t0=0.1),
        train_dataset=_with_bad_row(data, math.nan),
        **keywords,
    )
    with pytest.raises(NonFiniteError, match=f"the losses of rows {BAD_ROW - 16} of 32 are not finite before step 1"):
        trainer.train()


# ------------------------------------------------------------------------------------------------ no label counts
@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_which_no_label_counts(name: str, parts: Any, tmp_path: Path) -> None:
    """Its mean loss is 0/0, its gradient zero: every Trainer goes on, and so does every method."""
    kind, config, keywords, data = parts(name)
    columns = data.with_format("numpy")[:]
    rows = Dataset.from_dict(columns | {"labels": np.where(np.arange(48) < 8, -100, columns["labels"])})
    trainer = kind(
        args=_arguments(config, tmp_path, **METHODS[name][1]), train_dataset=rows.with_format("torch"), **keywords
    )
    trainer.train()
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
    assert [row["loss"] for row in trainer.state.log_history if "loss" in row][-1] != 0


def test_labels_that_are_shifted_out(tmp_path: Path) -> None:
    """A causal model's first label has no position that predicts it. What else is not finite is still found."""
    sizes: dict[str, Any] = {"n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=6, **sizes))
    ids = np.tile(np.arange(6), (8, 1))
    labels = np.where((np.arange(8)[:, None] < 4) & (np.arange(6) > 0), -100, ids)
    rows = Dataset.from_dict({"input_ids": ids, "labels": labels})
    trainer = Plain(model, _arguments(TrainingArguments, tmp_path, learning_rate=0.1), train_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 2
    with torch.no_grad():
        trainer.model.transformer.wte.weight[3, 0] = math.nan
    with pytest.raises(NonFiniteError, match="not finite in step 1"):
        trainer.train()
