"""RD training: its loss and its parts, baselines, a teacher that leaves no trace, resuming, refusals."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset, Value
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    HfArgumentParser,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

from hf_ext.data.rows import WithColumns
from hf_ext.functional import cka_loss, distillation_kl
from hf_ext.hub_cards import METHODS
from hf_ext.models import RDForImageClassification
from hf_ext.trainers import (
    DISAMConfig,
    DISAMTrainer,
    DivBSArguments,
    DivBSConfig,
    DivBSMixin,
    DivBSTrainer,
    RDArguments,
    RDMixin,
    RDTrainer,
    RDTrainingConfig,
)

Make = Callable[..., RDForImageClassification]


def _arguments(out: Path, kind: type[Any] = RDTrainingConfig, **extra: Any) -> Any:
    defaults = {"max_steps": 3, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 8}
    return kind(output_dir=str(out), **{**defaults, **quiet, **extra})


class Teacher(nn.Module):
    """Twelve features of an image, and how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.asked = nn.Linear(64, 12), nn.BatchNorm1d(12), 0

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.asked += len(pixel_values)
        return self.norm(self.linear(pixel_values.flatten(1)).tanh())


@pytest.fixture
def make(vit: Callable[..., Any]) -> Make:
    """An RD model, the same at every call, with its teacher."""

    def model(*, student: Any = None, **settings: Any) -> RDForImageClassification:
        student = vit() if student is None else student
        torch.manual_seed(1)
        return RDForImageClassification.from_student(student, Teacher(), teacher_width=12, **settings)

    return model


def _resnet(seed: int = 0) -> ResNetForImageClassification:
    torch.manual_seed(seed)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=5, **sizes))


def _trained(model: Any, data: Any, out: Path, kind: Any = RDTrainer, parts: Any = None, **extra: Any) -> Any:
    arguments = _arguments(out, RDTrainingConfig if issubclass(kind, RDMixin) else TrainingArguments, **extra)
    trainer = kind(model=model, args=arguments, train_dataset=data, **(parts or {}))
    trainer.train()
    return trainer


def _logged(trainer: Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def _difference(one: nn.Module, other: nn.Module) -> float:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


# ------------------------------------------------------------------------------------------------ the loss
def test_the_plain_trainer_trains_alike(make: Make, data: Dataset, tmp_path: Path) -> None:
    ours = _trained(make(beta=0.5), data, tmp_path, gradient_accumulation_steps=2)
    plain = _trained(make(beta=0.5), data, tmp_path, kind=Trainer, gradient_accumulation_steps=2)
    assert _difference(ours.model, plain.model) == 0
    assert _logged(ours, "loss") == _logged(plain, "loss")


def test_every_term_is_logged_and_they_make_the_loss(make: Make, data: Dataset, tmp_path: Path) -> None:
    weights = {"rd_alpha": 0.5, "rd_gamma": 2.0, "rd_beta": 0.25}
    trainer = _trained(make(), data, tmp_path, gradient_accumulation_steps=2, **weights)
    terms = [_logged(trainer, f"{name}_loss") for name in ("student", "reprogrammed", "cka", "kl")]
    factors = [1.0, *weights.values()]
    totals = [sum(f * v for f, v in zip(factors, values, strict=True)) for values in zip(*terms, strict=True)]
    assert len(totals) == 3 and totals == pytest.approx(_logged(trainer, "loss"), abs=1e-5)
    assert all(-1 <= value < 0 for value in terms[2])


def test_arguments_go_before_the_configuration(make: Make, data: Dataset, tmp_path: Path) -> None:
    settings = {"alpha": 0.3, "gamma": 0.6, "beta": 0.2, "temperature": 2.0}
    by_config = _trained(make(**settings, debiased=True, detach_reprogrammed=True), data, tmp_path)
    given = {f"rd_{name}": value for name, value in settings.items()}
    other = make(alpha=1.0, gamma=9.0, beta=3.0)
    by_argument = _trained(other, data, tmp_path, rd_debiased=True, rd_detach_reprogrammed=True, **given)
    assert _difference(by_config.model, by_argument.model) == 0
    assert _difference(by_config.model, _trained(make(**settings), data, tmp_path).model) > 1e-4


def test_weights_decay_linearly(make: Make, data: Dataset, tmp_path: Path) -> None:
    trainer = _trained(make(), data, tmp_path, rd_decay="linear", rd_beta=0.5)
    names = ("student", "reprogrammed", "cka", "kl")
    values = zip(*(_logged(trainer, f"{name}_loss") for name in names), strict=True)
    expected = [
        student + left * other + cka + left * 0.5 * kl
        for left, (student, other, cka, kl) in zip((1, 2 / 3, 1 / 3), values, strict=True)
    ]
    assert _logged(trainer, "loss") == pytest.approx(expected, abs=1e-5)


def test_accumulation_is_the_mean_over_micro_batches(make: Make, data: Dataset, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 1, "rd_gamma": 0.0}
    whole = _trained(make(), data, tmp_path, per_device_train_batch_size=8, **settings)
    parts = _trained(make(), data, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, **settings)
    assert _difference(whole.model, parts.model) < 1e-6
    settings["rd_gamma"] = 1.0  # the alignment is none
    whole = _trained(make(), data, tmp_path, per_device_train_batch_size=8, **settings)
    parts = _trained(make(), data, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, **settings)
    assert _difference(whole.model, parts.model) > 1e-5


def test_label_smoothing(make: Make, data: Dataset, tmp_path: Path) -> None:
    class Kept(RDTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss, outputs = super().compute_loss(model, inputs, True)
            terms = (outputs.logits, outputs.reprogrammed_logits)
            self.smoothed = sum(F.cross_entropy(z, inputs["labels"], label_smoothing=0.2) for z in terms)
            self.seen = loss
            return loss

    trainer = _trained(make(), data, tmp_path, kind=Kept, label_smoothing_factor=0.2, rd_gamma=0.0, max_steps=1)
    torch.testing.assert_close(trainer.seen, trainer.smoothed)


# ------------------------------------------------------------------------------------------------ baselines
def test_the_student_alone_is_plain_training(make: Make, data: Dataset, tmp_path: Path) -> None:
    model = make(student=_resnet())
    ours = _trained(model, data, tmp_path, rd_method="student")
    plain = _trained(_resnet(), data, tmp_path, kind=Trainer)
    assert _difference(ours.model.student, plain.model) < 1e-6
    assert model.teacher.asked == 0 and _logged(ours, "loss") == pytest.approx(_logged(plain, "loss"), abs=1e-6)


def test_weights_of_zero_are_the_student_alone(make: Make, data: Dataset, tmp_path: Path) -> None:
    one = _trained(make(), data, tmp_path, rd_method="student")
    other = _trained(make(), data, tmp_path, rd_alpha=0.0, rd_gamma=0.0)
    assert _difference(one.model, other.model) == 0 and other.model.teacher.asked == 0


class _Kept(RDTrainer):
    """Keeps the loss and the outputs of the last micro-batch."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen = super().compute_loss(model, inputs, True)
        self.labels = inputs["labels"]
        return self.seen[0]


def test_alignment_with_the_features_as_they_are(make: Make, data: Dataset, tmp_path: Path) -> None:
    trainer = _trained(make(), data, tmp_path, kind=_Kept, rd_method="cka", rd_gamma=2.0)
    loss, outputs = trainer.seen
    entropy = F.cross_entropy(outputs.logits, trainer.labels)
    torch.testing.assert_close(loss, entropy + 2 * cka_loss(outputs.teacher_features, outputs.student_features))
    assert _logged(trainer, "cka_loss") and not _logged(trainer, "reprogrammed_loss")


def test_logits_of_a_classifier_of_teacher_features(make: Make, data: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(3)
    probe = nn.Linear(12, 5)
    before = probe.weight.clone()
    trainer = _trained(
        make(), data, tmp_path, kind=_Kept, parts={"teacher_classifier": probe}, rd_method="kd", rd_temperature=3.0
    )
    loss, outputs = trainer.seen
    divergence = distillation_kl(probe(outputs.teacher_features), outputs.logits, temperature=3.0)
    torch.testing.assert_close(loss, F.cross_entropy(outputs.logits, trainer.labels) + divergence)
    assert torch.equal(probe.weight, before) and probe.weight.grad is None


@pytest.mark.parametrize("method", ["cka", "student"])
def test_phi_stays_where_nothing_trains_it(make: Make, data: Dataset, tmp_path: Path, method: str) -> None:
    before = make().phi.state_dict()
    trainer = _trained(make(), data, tmp_path, rd_method=method)
    assert all(torch.equal(before[name], value) for name, value in trainer.model.phi.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trainer.model.phi.parameters())


# ------------------------------------------------------------------------------------------------ the teacher
def test_the_teacher_leaves_no_trace(make: Make, data: Dataset, tmp_path: Path) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    trainer = _trained(model, data, tmp_path, save_strategy="steps", save_steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.state_dict().items())
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in model.parameters()}
    with safe_open(tmp_path / "checkpoint-3" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {name.split(".")[0] for name in names} == {"student", "phi"}
    assert (tmp_path / "checkpoint-3" / "modeling_rd.py").is_file()


def test_without_a_teacher_training_stops_at_once(make: Make, vit: Any, data: Dataset, tmp_path: Path) -> None:
    model = RDForImageClassification.from_student(vit(), teacher_width=12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="teacher: found none attached and no teacher_features in the batch"):
        _trained(model, data, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    _trained(model, data, tmp_path, rd_method="student")


def test_features_as_a_column(make: Make, vit: Any, data: Dataset, tmp_path: Path) -> None:
    teacher = make().teacher.eval()
    features = teacher(torch.stack(list(data["pixel_values"]))).numpy()
    column = Dataset.from_dict({**data.with_format("numpy")[:], "teacher_features": features}).with_format("torch")
    model = make()
    expected = _trained(model, data, tmp_path)
    model = make()
    model._teacher = None
    found = _trained(model, column, tmp_path)
    assert _difference(found.model, expected.model) < 1e-6


@pytest.mark.parametrize("wrapped", [False, True])
def test_cached_features_train_alike(make: Make, vit: Any, data: Dataset, tmp_path: Path, wrapped: bool) -> None:
    rows: Any = [{name: row[name] for name in ("pixel_values", "labels")} for row in data] if wrapped else data
    settings = {"max_steps": 12, "logging_steps": 12}  # two epochs

    def model() -> RDForImageClassification:
        return make(student=vit(hidden_dropout_prob=0.1))

    expected = _trained(model(), data, tmp_path, **settings)
    found = _trained(model(), rows, tmp_path, rd_cache_teacher=True, **settings)
    assert expected.model.teacher.asked == 2 * 48 and found.model.teacher.asked == 48
    assert isinstance(found.train_dataset, WithColumns) and len(found.train_dataset) == 48
    assert _difference(found.model, expected.model) < 1e-6
    found.train()
    assert found.model.teacher.asked == 48  # no second time


def test_images_that_change_are_not_cached(make: Make, data: Dataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def augmented(rows: dict[str, Any]) -> dict[str, Any]:
        return {**rows, "pixel_values": [torch.tensor(rng.normal(size=(1, 8, 8))).float() for _ in rows["labels"]]}

    with pytest.raises(ValueError, match="rd_cache_teacher: found images that change from one reading to the next"):
        _trained(make(), data.with_transform(augmented), tmp_path, rd_cache_teacher=True, remove_unused_columns=False)


# ------------------------------------------------------------------------------------------------ Trainer's features
def test_metrics_and_the_best_model(make: Make, data: Dataset, tmp_path: Path) -> None:
    def accuracy(predicted: Any) -> dict[str, float]:
        assert predicted.predictions.shape == (48, 5)
        return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}

    saving = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = _trained(
        make(),
        data,
        tmp_path,
        parts={"eval_dataset": data, "compute_metrics": accuracy},
        load_best_model_at_end=True,
        metric_for_best_model="eval_accuracy",
        max_steps=6,
        **saving,
    )
    asked = trainer.model.teacher.asked
    final = trainer.evaluate()
    assert final["eval_accuracy"] == max(_logged(trainer, "eval_accuracy"))
    assert asked == trainer.model.teacher.asked == 6 * 8  # in training alone
    with torch.no_grad():
        logits = trainer.model.eval().student(torch.stack(list(data["pixel_values"]))).logits
    loss = F.cross_entropy(logits, torch.as_tensor(np.array(data["labels"])))
    assert final["eval_loss"] == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize("kind", [RDTrainer, Trainer])
def test_resuming_is_bit_equal(make: Make, vit: Any, data: Dataset, tmp_path: Path, kind: Any) -> None:
    def model() -> RDForImageClassification:
        # this student saves under the names that it loads: the plain Trainer takes no others
        return make(student=vit(hidden_dropout_prob=0.1) if kind is RDTrainer else _resnet())

    settings: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "optim": "adamw_torch"}
    settings |= {"learning_rate": 1e-3}
    whole = _trained(model(), data, tmp_path / "whole", kind=kind, **settings)
    folder = str(tmp_path / "whole" / "checkpoint-4")
    fresh = RDForImageClassification.from_pretrained(folder)  # as a new process does
    assert fresh.teacher is None
    fresh.attach_teacher(make().teacher)
    arguments = _arguments(tmp_path / "again", type(whole.args), **settings)
    again = kind(model=fresh, args=arguments, train_dataset=data)
    again.train(resume_from_checkpoint=folder)
    assert _difference(again.model, whole.model) == 0
    assert _logged(again, "loss") == _logged(whole, "loss")


def test_what_is_saved_at_the_end_loads_everywhere(make: Make, data: Dataset, tmp_path: Path) -> None:
    trainer = _trained(make(), data, tmp_path / "out")
    trainer.save_model()
    trainer.save_model(str(tmp_path / "there"))
    trainer.model.save_student(tmp_path / "student")
    images = torch.stack(list(data["pixel_values"][:4]))
    expected = trainer.model.eval()(images).logits
    for folder in (tmp_path / "out", tmp_path / "there"):
        assert (folder / "modeling_rd.py").is_file()
        torch.testing.assert_close(AutoModelForImageClassification.from_pretrained(folder)(images).logits, expected)
    student = AutoModelForImageClassification.from_pretrained(tmp_path / "student")
    assert type(student) is type(trainer.model.student)
    torch.testing.assert_close(student(images).logits, expected)


def test_the_card_says_what_was_used(
    make: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RDMixin, "method", "rd")
    trainer = _trained(make(alpha=0.5, gamma=0.25), data, tmp_path, rd_gamma=0.75, rd_cache_teacher=True)
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    for row in ("| rd_alpha | 0.5 |", "| rd_gamma | 0.75 |", "| rd_beta | 0 |", "| teacher | module |"):
        assert row in card
    assert (
        re.search(rf"\| train \| 48 \| .*{data._fingerprint}", card)
        and METHODS["rd"].equation in card
        and METHODS["rd"].bibtex in card
    )
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    found: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path.parent)
    exec(snippet, found)
    assert type(found["model"]) is RDForImageClassification and not found["model"].training


def test_lora_in_the_student(make: Make, data: Dataset, tmp_path: Path) -> None:
    model = make()
    config = LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["classifier", "phi"])
    adapted = get_peft_model(model, config)
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    trainer = _trained(adapted, data, tmp_path)
    after = trainer.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    parts = {"lora": "lora_B", "classifier": "classifier.modules_to_save", "phi": "phi.modules_to_save"}
    for part in parts.values():
        assert any(part in name for name in changed), part
    assert all(any(part in name for part in ("lora_", "modules_to_save")) for name in changed)
    assert len(_logged(trainer, "cka_loss")) == 3


# ------------------------------------------------------------------------------------------------ other methods
def test_other_trainers_train_an_rd_model(make: Make, data: Dataset, tmp_path: Path) -> None:
    domains = data.rename_column("task_ids", "domain_ids")
    runs: list[tuple[type[Any], Any, Dataset]] = [
        (DISAMTrainer, _arguments(tmp_path, DISAMConfig, disam_rho=0.05), domains),
        (DivBSTrainer, _arguments(tmp_path, DivBSConfig, divbs_ratio=0.5), data),
    ]
    for kind, arguments, rows in runs:
        model = make()
        kind(model, arguments, train_dataset=rows).train()
        first = make()
        assert not torch.equal(model.student.classifier.weight, first.student.classifier.weight), kind
        assert not torch.equal(next(model.phi.parameters()), next(first.phi.parameters())), kind
        assert torch.equal(model.teacher.linear.weight, first.teacher.linear.weight)


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rd_method": "hints"}, "rd_method: found 'hints', allowed are 'rd', 'kd', 'cka', 'student'"),
        ({"rd_decay": "cosine"}, "rd_decay: found 'cosine', allowed are 'none', 'linear'"),
        ({"rd_cka_scope": "node"}, "rd_cka_scope: found 'node', allowed are 'global', 'process'"),
        ({"rd_gamma": -1.0}, "rd_gamma: found -1.0, allowed are None, numbers >= 0"),
        ({"rd_temperature": 0.0}, "rd_temperature: found 0.0, allowed are None, numbers > 0"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RDTrainingConfig(output_dir=str(tmp_path), **arguments)


def test_arguments_parse_alone() -> None:
    (parsed,) = HfArgumentParser(RDArguments).parse_args_into_dataclasses(["--rd_alpha", "0.5", "--rd_debiased", "1"])
    assert parsed == RDArguments(rd_alpha=0.5, rd_debiased=True)


class _Both(DivBSMixin, RDTrainer):
    pass


@dataclass
class _BothConfig(DivBSArguments, RDTrainingConfig):
    pass


@pytest.mark.parametrize(
    ("kind", "arguments", "parts", "message"),
    [
        (RDTrainer, {}, {"compute_loss_func": len}, "compute_loss_func: found one, allowed is none"),
        (RDTrainer, {"rd_method": "kd"}, {}, "teacher_classifier: found none with rd_method='kd'"),
        (RDTrainer, {}, {"teacher_classifier": len}, "teacher_classifier: found one with rd_method='rd'"),
        (_Both, {}, {}, "divbs: found it combined with rd, allowed is no other"),
    ],
)
def test_what_cannot_work_is_refused(
    make: Make, data: Dataset, tmp_path: Path, kind: Any, arguments: Any, parts: Any, message: str
) -> None:
    config = _arguments(tmp_path, _BothConfig if kind is _Both else RDTrainingConfig, **arguments)
    with pytest.raises(ValueError, match=message):
        kind(model=make(), args=config, train_dataset=data, **parts)


def test_other_models_are_refused(vit: Any, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="model: found ViTForImageClassification, allowed is RDForImageClassification"
    ):
        RDTrainer(model=vit(), args=_arguments(tmp_path), train_dataset=data)


def test_data_without_classes_are_refused(make: Make, data: Dataset, tmp_path: Path) -> None:
    without, numbers = data.remove_columns("labels"), data.cast_column("labels", Value("float32"))
    others = without.add_column("label", [*range(47), -1])
    for rows, found in (
        (without, "none among the columns pixel_"),
        (numbers, r"Value\('float32'\)"),
        (others, "5 in"),
    ):
        with pytest.raises(ValueError, match=rf"labels?: found {found}"):
            RDTrainer(model=make(), args=_arguments(tmp_path), train_dataset=rows)
    # where only a batch shows it
    with pytest.raises(ValueError, match="labels: found none, allowed are classes"):
        _trained(make(), without.with_transform(dict), tmp_path)
    with pytest.raises(ValueError, match=r"labels: found torch.float32 of shape \(8,\)"):
        _trained(make(), numbers.with_transform(dict), tmp_path)


def test_data_without_a_length_are_not_cached(make: Make, data: Dataset, tmp_path: Path) -> None:
    rows = IterableDataset.from_generator(lambda: iter(data))
    with pytest.raises(ValueError, match="rd_cache_teacher: found a data set without a length"):
        _trained(make(), rows, tmp_path, rd_cache_teacher=True)


@pytest.mark.parametrize(("size", "method", "warns"), [(3, "rd", True), (4, "rd", False), (2, "student", False)])
def test_small_batches_are_warned_of(
    make: Make, data: Dataset, tmp_path: Path, recwarn: Any, size: int, method: str, warns: bool
) -> None:
    _trained(make(), data, tmp_path, per_device_train_batch_size=size, rd_method=method, rd_cka_scope="process")
    found = [str(warning.message) for warning in recwarn if "the alignment of RD" in str(warning.message)]
    assert len(found) == int(warns) and all(f"over batches of {size}:" in text for text in found)
