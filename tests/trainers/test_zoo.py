"""Every method's mixin in front of Trainers as users write them, and with what Trainer's users give it."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import make_dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTModel,
    hyperparameter_search,
    integrations,
)
from transformers.trainer_utils import BestRun, HPSearchBackend

from hf_ext import trainers
from hf_ext.adapters import MoLAConfig
from hf_ext.models import FERForImageClassification, RDForImageClassification

sys.path.insert(0, str(Path(__file__).parent))  # pytest's import mode adds no folders

from zoo import ZOO, Asked, OtherLoss, OwnEvaluate, OwnLoader, OwnOptimizer, OwnSampler

#: options of every method that give it something to do
OPTIONS: dict[str, dict[str, Any]] = {
    "MoLA": {},
    "DISAM": {"disam_rho": 0.3, "disam_lambda": 0.5, "disam_domain_column": "task_ids"},
    "DivBS": {"divbs_ratio": 0.5},
    "TARF": {"tarf_t0": 0.1, "tarf_t1": 0, "tarf_selection": "none"},
    "RD": {},
    "FER": {},
}
#: of their own loss alone, in training
OWN_LOSS = ("TARF", "RD", "FER")
#: with metrics per group
GROUPED = ("MoLA", "DISAM")


def _model(method: str, vit: Callable[..., Any]) -> Any:
    if method == "FER":
        torch.manual_seed(0)
        sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
        vision = ViTModel(ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))
        texts = torch.randn(5, 12, generator=torch.Generator().manual_seed(5))
        names = ["neutral", "happy", "sad", "angry", "afraid"]
        return FERForImageClassification.from_backbones(vision, lambda _: texts, names, logit_scale=10.0)
    model = vit(num_hidden_layers=1)
    if method == "RD":
        torch.manual_seed(1)
        return RDForImageClassification.from_student(model, _Teacher(), teacher_width=12)
    if method == "MoLA":
        config = MoLAConfig(target_modules=["q_proj", "fc1"], num_experts=3, r=2, modules_to_save=["classifier"])
        return get_peft_model(model, config)
    return model


class _Teacher(nn.Linear):
    def __init__(self) -> None:
        super().__init__(64, 12)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values.flatten(1))


def _trainer(method: str, base: type[Trainer], vit: Callable[..., Any], out: Path, rows: Dataset, **extra: Any) -> Any:
    """The method in front of `base`; `extra` are arguments of either, of `TrainingArguments` where it has them."""
    mixin, arguments = getattr(trainers, f"{method}Mixin"), getattr(trainers, f"{method}Arguments")
    kind: Any = type(f"{method}{base.__name__}", (mixin, base), {})
    config: Any = make_dataclass("Config", [], bases=(arguments, TrainingArguments))
    defaults = {"max_steps": 2, "learning_rate": 0.1, "optim": "sgd", "lr_scheduler_type": "constant"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    options = {**defaults, **quiet, "per_device_train_batch_size": 8, "max_grad_norm": 0.0, **OPTIONS[method]}
    fields = {name for name in extra if name in config.__dataclass_fields__}
    args = config(str(out), **options, **{name: extra.pop(name) for name in fields})
    if "model_init" not in extra:
        extra["model"] = _model(method, vit)
    if method == "TARF":
        extra["forget_dataset"] = list(range(8))
    return kind(args=args, train_dataset=rows, eval_dataset=rows, compute_metrics=_accuracy, **extra)


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def _weights(trainer: Any) -> list[torch.Tensor]:
    return [value.clone() for value in trainer.model.state_dict().values()]


def _same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _runtime(name: str) -> bool:
    return name.endswith(("runtime", "per_second", "preparation_time", "epoch"))


@pytest.fixture(params=list(OPTIONS))
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(method: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> Callable[..., Any]:
    return partial(_trainer, method, vit=vit, out=tmp_path, rows=data)


_PLAIN: dict[tuple[str, ...], tuple[list[float], list[torch.Tensor], dict[str, float]]] = {}


def _plain(method: str, make: Callable[..., Any], **order: str) -> tuple[Any, ...]:
    """Losses, weights and metrics of the method in front of transformers' own, made once."""
    key = (method, *order)
    if key not in _PLAIN:
        trainer = make(Trainer, **order)
        trainer.train()
        _PLAIN[key] = _losses(trainer), _weights(trainer), trainer.evaluate()
    return _PLAIN[key]


def _losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.filterwarnings("ignore:compute_loss")
@pytest.mark.parametrize("kind", ZOO, ids=lambda kind: kind.__name__)
def test_a_trainer_of_a_users_own(kind: type[Asked], method: str, make: Any) -> None:
    """Is asked for what it overrides, and trains and evaluates as the method in front of transformers' own."""
    if kind is OwnLoader and method not in GROUPED:  # whose loader hands all columns to the model
        make.keywords["rows"] = make.keywords["rows"].remove_columns("task_ids")
    order = {"train_sampling_strategy": "sequential"} if kind in (OwnSampler, OwnLoader) else {}
    own, before, (losses, weights, metrics) = make(kind), _weights(make(kind)), _plain(method, make, **order)
    if method == "DivBS" and kind is OwnLoader:  # which has to make the larger batches itself
        own.args.per_device_train_batch_size = 16
    own.train()
    assert _losses(own) == losses and len(losses) == 2
    assert _same(_weights(own), weights) and not _same(_weights(own), before)
    evaluated = own.evaluate()
    for name, value in metrics.items():
        changed = (kind is OwnEvaluate and name != "eval_accuracy") or (kind is OtherLoss and name == "eval_loss")
        if not changed and not _runtime(name):
            assert evaluated.get(name) == pytest.approx(value, abs=1e-6), name
    (overridden,) = {name for name in vars(kind) if not name.startswith("__") and name != "_right"}
    assert overridden in own.asked


@pytest.mark.parametrize("method", [OWN_LOSS[0], OWN_LOSS[1], OWN_LOSS[2], "DISAM"], indirect=True)
def test_a_loss_that_is_not_trained_on_is_said(method: str, make: Callable[..., Any]) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make(OtherLoss)
        make(OwnOptimizer)
    found = [str(one.message) for one in said if "compute_loss: found one of OtherLoss's" in str(one.message)]
    assert len(found) == (method in OWN_LOSS)


class _Reads(TrainerCallback):
    def __init__(self) -> None:
        self.read: list[dict[str, Any]] = []

    def on_log(self, *args: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.read.append(dict(logs or {}))


def test_what_users_give_a_trainer(method: str, make: Callable[..., Any]) -> None:
    """An optimizer and a scheduler, a callback that reads logs, metrics of inputs and losses."""

    def metrics(prediction: Any) -> dict[str, float]:
        assert prediction.inputs is not None and prediction.losses is not None
        return _accuracy(prediction)

    plain, own, reads = make(Trainer), make(Trainer), _Reads()
    weights = [weight for weight in own.model.parameters() if weight.requires_grad]
    own.optimizer = torch.optim.SGD(weights, lr=0.1)
    own.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(own.optimizer, factor=1.0)
    own.add_callback(reads)
    own.args.include_for_metrics = ["inputs", "loss"]
    own.compute_metrics = metrics
    plain.train()
    own.train()
    assert _same(_weights(own), _weights(plain))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluated, expected = own.evaluate(), plain.evaluate()
    assert {name: evaluated[name] for name in expected if not _runtime(name)} == {
        name: value for name, value in expected.items() if not _runtime(name)
    }
    assert any("task" in name or "domain" in name for name in expected) == (method in GROUPED)
    assert [entry["loss"] for entry in reads.read if "loss" in entry] == [
        entry["loss"] for entry in plain.state.log_history if "loss" in entry
    ]


def test_a_loss_that_users_give_a_trainer(method: str, make: Callable[..., Any]) -> None:
    """Is what is trained on, or refused by name."""

    def mean(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return 2 * nn.functional.cross_entropy(outputs["logits"], labels)

    extra: dict[str, Any] = {"compute_loss_func": mean}
    if method in OWN_LOSS:
        with pytest.raises(ValueError, match="compute_loss_func"):
            make(Trainer, **extra)
        return
    if method == "DISAM":
        extra["per_sample_loss_func"] = lambda outputs, labels: (
            2 * nn.functional.cross_entropy(outputs["logits"], labels, reduction="none")
        )
    plain, own = make(Trainer), make(Trainer, **extra)
    plain.train()
    own.train()
    assert not _same(_weights(own), _weights(plain))


class _InTurn(hyperparameter_search.HyperParamSearchBackendBase):
    """A search through the values of two trials, as the backends run theirs."""

    name = "in turn"
    weights: list[list[torch.Tensor]] = []

    @staticmethod
    def is_available() -> bool:
        return True

    def run(self, trainer: Any, n_trials: int, direction: str, **kwargs: Any) -> BestRun:
        found = []
        for number, trial in enumerate([{"learning_rate": 0.2}, {"learning_rate": 0.1}]):
            trainer.objective = None
            trainer.train(trial=SimpleNamespace(number=number, params=trial))
            self.weights.append(_weights(trainer))
            found.append((trainer.compute_objective(trainer.evaluate()), trial))
        objective, trial = max(found, key=lambda pair: pair[0])
        return BestRun("0", objective, trial)

    def default_hp_space(self, trial: Any) -> dict[str, float]:
        return dict(trial.params)


SEARCHES = [*((method, {}) for method in OPTIONS), ("DISAM", {"disam_domain_weights": "running"})]


@pytest.mark.parametrize(
    ("method", "setting"), [*SEARCHES, ("RD", {"rd_method": "cka"})], indirect=["method"], ids=str
)
def test_a_search_for_hyper_parameters(
    setting: dict[str, Any], method: str, make: Any, vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every trial is a training of its own, of a model of its own: nothing of the one before is left."""
    backends: dict[Any, Any] = hyperparameter_search.ALL_HYPERPARAMETER_SEARCH_BACKENDS
    monkeypatch.setitem(backends, HPSearchBackend.OPTUNA, _InTurn)
    monkeypatch.setattr(integrations, "hp_params", lambda trial: trial.params)
    monkeypatch.setattr(Trainer, "_report_to_hp_search", lambda *_: None)  # to a package that is not here
    monkeypatch.setattr(_InTurn, "weights", [])
    searching = make(Trainer, model_init=partial(_model, method, vit), **setting)
    best = searching.hyperparameter_search(direction="maximize", backend="optuna", compute_objective=_objective)
    alone = make(Trainer, model_init=partial(_model, method, vit), **setting)
    alone.train()
    assert _same(_InTurn.weights[1], _weights(alone)) and not _same(*_InTurn.weights)
    assert best.hyperparameters["learning_rate"] in (0.1, 0.2)
    if method == "RD":
        phi = all(weight.requires_grad for weight in searching.model.phi.parameters())
        assert phi == (not setting)


def _objective(metrics: dict[str, float]) -> float:
    return metrics["eval_accuracy"]


@pytest.mark.parametrize("method", ["DISAM"], indirect=True)
def test_a_trial_of_a_value_that_cannot_be(method: str, make: Any, vit: Callable[..., Any]) -> None:
    searching = make(Trainer, model_init=lambda: vit())
    searching.hp_search_backend = HPSearchBackend.WANDB
    with pytest.raises(ValueError, match=r"disam_rho: found -1\.0, allowed are numbers >= 0"):
        searching.train(trial={"disam_rho": -1.0})
