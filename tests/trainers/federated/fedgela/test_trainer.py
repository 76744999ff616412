"""FedGELA's client: what it counts, what it reports, saves and resumes, what it goes together with and refuses."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset as MapDataset
from transformers import AutoModelForImageClassification, EvalPrediction, Trainer

from hf_ext.adapters import MoLAConfig
from hf_ext.models import ETFClassifier, replace_classifier
from hf_ext.trainers import DISAMArguments, DISAMMixin, MoLAArguments, MoLAMixin
from hf_ext.trainers.federated import FedGELAArguments, FedGELAConfig, FedGELAMixin, FedGELATrainer

COUNTS = [3, 0, 1, 0, 2]


@pytest.fixture
def etf_vit(vit: Callable[..., Any]) -> Callable[..., Any]:
    def make(**head: Any) -> Any:
        return replace_classifier(vit(), **head)

    return make


@pytest.fixture
def rows(data: Dataset) -> Dataset:
    return data.remove_columns("task_ids")


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    logits: Any = prediction.predictions
    return {"accuracy": float(np.mean(logits.argmax(-1) == prediction.label_ids))}


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------ phi
def test_phi_is_of_the_labels_alone(etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any]) -> None:
    """No image is read for it; a transform of the rows does not matter; counts may be given instead."""

    def no_image(batch: Any) -> Any:
        raise AssertionError("a row was read")

    unread = rows.with_transform(no_image)
    trainer = FedGELATrainer(etf_vit(), FedGELAConfig(**plain_sgd, remove_unused_columns=False), train_dataset=unread)
    counts = np.bincount(rows["labels"][:], minlength=5)
    assert trainer.class_weights is not None
    torch.testing.assert_close(trainer.class_weights, torch.tensor(5 * counts / 48).float())
    named = rows.rename_column("labels", "label")
    for given in (COUNTS, np.array(COUNTS), torch.tensor(COUNTS)):
        trainer = FedGELATrainer(etf_vit(), FedGELAConfig(**plain_sgd), train_dataset=named, class_counts=given)
        assert trainer.class_weights is not None
        torch.testing.assert_close(trainer.class_weights, torch.tensor(COUNTS) * 5 / 6)


def test_a_client_of_one_class(etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any]) -> None:
    one = rows.remove_columns("labels").add_column("labels", [3] * 48)
    trainer = FedGELATrainer(
        etf_vit(),
        FedGELAConfig(**plain_sgd, max_steps=3),
        train_dataset=one,
        eval_dataset=rows,
        compute_metrics=_accuracy,
    )
    trainer.train()
    assert trainer.class_weights is not None and trainer.class_weights.tolist() == [0, 0, 0, 5, 0]
    assert 0 <= trainer.evaluate()["eval_personal_accuracy"] <= 1


def test_phi_is_neither_saved_nor_left(
    etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any], tmp_path: Path
) -> None:
    """While it trains the head shows the local view, in evaluation the global one, also in between."""
    model, seen = etf_vit(), []
    model.classifier.register_forward_hook(lambda head, *_: seen.append((head.training, head.class_weights is None)))
    trainer = FedGELATrainer(
        model,
        FedGELAConfig(
            **plain_sgd | {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}, max_steps=2
        ),
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
    )
    trainer.train()
    assert seen and all(training != is_global for training, is_global in seen)
    assert model.classifier.class_weights is None
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert "model.classifier.weight" in saved
    assert not any("_local" in name or "class_weights" in name for name in saved)

    class Interrupted(Exception):
        pass

    def interrupt(*_: Any) -> None:
        raise Interrupted

    model.classifier.register_forward_hook(interrupt)
    with pytest.raises(Interrupted):
        trainer.train()
    assert model.classifier.class_weights is None


def test_the_head_is_never_trained(etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any]) -> None:
    model = etf_vit()
    before = _weights(model)
    FedGELATrainer(model, FedGELAConfig(**plain_sgd, max_steps=2, weight_decay=0.1), train_dataset=rows).train()
    after = _weights(model)
    assert torch.equal(after["model.classifier.weight"], before["model.classifier.weight"])
    assert not torch.equal(after["model.vit.layernorm.weight"], before["model.vit.layernorm.weight"])
    assert ETFClassifier.stays_home == ("weight",)


# ------------------------------------------------------------------------------------------------ views
def test_arguments_override_the_heads(
    etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any], tmp_path: Path
) -> None:
    """In the model and in what is saved of it."""
    model = etf_vit()
    config = FedGELAConfig(**plain_sgd, fedgela_temperature=0.7, fedgela_feature_norm="batch", max_steps=1)
    trainer = FedGELATrainer(model, config, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    for head in (model.classifier, again.classifier):
        assert (head.feature_norm, head.temperature) == ("batch", 0.7)
    assert _same(_weights(again), _weights(model)) and "model.classifier.norm.running_mean" in _weights(again)
    kept = etf_vit(temperature=0.3)
    FedGELATrainer(kept, FedGELAConfig(**plain_sgd), train_dataset=rows)
    assert kept.classifier.temperature == 0.3
    FedGELATrainer(kept, FedGELAConfig(**plain_sgd, fedgela_feature_norm="none"), train_dataset=rows)
    assert (kept.classifier.feature_norm, kept.classifier.temperature, kept.classifier.norm) == ("none", 1.0, None)


def test_groups_have_both_views_too(etf_vit: Callable[..., Any], data: Dataset, plain_sgd: dict[str, Any]) -> None:
    class DomainTrainer(FedGELAMixin, DISAMMixin, Trainer):
        pass

    @dataclass
    class Config(DISAMArguments, FedGELAConfig):
        pass

    rows = data.rename_column("task_ids", "domain_ids")
    args = Config(**plain_sgd, max_steps=1)
    trainer = DomainTrainer(etf_vit(), args, train_dataset=rows, eval_dataset=rows, compute_metrics=_accuracy)
    trainer.train()
    metrics = trainer.evaluate()
    for domain in range(3):
        part = rows.filter(lambda row, domain=domain: row["domain_ids"] == domain)
        alone = trainer.evaluate(part.remove_columns("domain_ids"))
        for view in ("", "personal_"):
            assert metrics[f"eval_domain_{domain}_{view}accuracy"] == pytest.approx(alone[f"eval_{view}accuracy"])
    worst = min(metrics[f"eval_domain_{domain}_personal_accuracy"] for domain in range(3))
    assert metrics["eval_worst_domain_personal_accuracy"] == worst


def test_metrics_with_names_of_their_own_and_batches(
    etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any]
) -> None:
    def metrics(prediction: Any) -> dict[str, float]:
        logits, labels = (np.concatenate(values) for values in (prediction.predictions, prediction.label_ids))
        return {"eval_accuracy": float((logits.argmax(-1) == labels).mean())}

    trainer = FedGELATrainer(
        etf_vit(),
        FedGELAConfig(**plain_sgd, eval_do_concat_batches=False),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=metrics,
    )
    found = trainer.evaluate()
    assert {"eval_accuracy", "eval_personal_accuracy"} <= found.keys()
    assert trainer.compute_metrics is metrics


def test_where_there_is_no_personal_view(
    etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any]
) -> None:
    shared: dict[str, Any] = {"train_dataset": rows, "eval_dataset": rows}
    trainer = FedGELATrainer(
        etf_vit(),
        FedGELAConfig(**plain_sgd),
        **shared,
        compute_metrics=lambda p: {"mean": float(np.mean(p.predictions))},
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
    )
    with pytest.warns(UserWarning, match="preprocess_logits_for_metrics: found one, the metrics of the personal view"):
        assert "eval_personal_mean" not in trainer.evaluate()
    control = FedGELAConfig(**plain_sgd, fedgela_class_weights=False)
    trainer = FedGELATrainer(etf_vit(), control, **shared, compute_metrics=_accuracy)
    assert "eval_accuracy" in (found := trainer.evaluate()) and "eval_personal_accuracy" not in found
    with pytest.raises(ValueError, match="class_weights: found none, allowed is a Trainer with"):
        trainer.personal_logits(torch.ones(2, 5))
    alone = FedGELATrainer(etf_vit(), FedGELAConfig(**plain_sgd), eval_dataset=rows, compute_metrics=_accuracy)
    assert "eval_accuracy" in alone.evaluate() and alone.class_weights is None


# ------------------------------------------------------------------------------------------------ ways to train
def test_half_precision_and_smoothing(etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any]) -> None:
    for options in ({"bf16": True}, {"label_smoothing_factor": 0.1}, {"gradient_checkpointing": True}):
        model = etf_vit()
        before = _weights(model)
        trainer = FedGELATrainer(model, FedGELAConfig(**plain_sgd, **options, max_steps=2), train_dataset=rows)
        assert np.isfinite(trainer.train().training_loss)
        assert not _same(before, _weights(model))


def test_resumption_is_exact(
    etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any], tmp_path: Path
) -> None:
    settings = plain_sgd | {"save_strategy": "steps", "save_steps": 2, "fedgela_feature_norm": "batch"}
    whole, resumed = etf_vit(), etf_vit()
    args = FedGELAConfig(**settings | {"output_dir": str(tmp_path / "whole")}, max_steps=4)
    FedGELATrainer(whole, args, train_dataset=rows).train()
    trainer = FedGELATrainer(resumed, args, train_dataset=rows)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert _same(_weights(whole), _weights(resumed))


def test_a_model_made_anew_for_every_training(
    etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any]
) -> None:
    config = FedGELAConfig(**plain_sgd, max_steps=2, fedgela_temperature=0.5)
    trainer = FedGELATrainer(model_init=lambda: etf_vit(), args=config, train_dataset=rows)
    trainer.train()
    model = etf_vit()
    FedGELATrainer(model, config, train_dataset=rows).train()
    assert _same(_weights(trainer.model), _weights(model))
    assert trainer.model is not None and trainer.model.classifier.class_weights is None


def test_lora_around_it(etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any], tmp_path: Path) -> None:
    """The adapter alone is trained and saved; with the base model it gives the same again. A copied head works too."""
    for saved in (None, ["classifier"]):
        lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, modules_to_save=saved)
        model: Any = get_peft_model(etf_vit(), lora)
        trainer = FedGELATrainer(
            model,
            FedGELAConfig(**plain_sgd, max_steps=2),
            train_dataset=rows,
            eval_dataset=rows,
            compute_metrics=_accuracy,
        )
        trainer.train()
        assert "eval_personal_accuracy" in trainer.evaluate()
        model.save_pretrained(tmp_path / "adapter")
        again = PeftModel.from_pretrained(etf_vit(), tmp_path / "adapter")
        pixels = rows[:4]["pixel_values"]
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(pixels).logits, model.eval()(pixels).logits, rtol=0, atol=0)
            assert not torch.equal(etf_vit().eval()(pixels).logits, model(pixels).logits)


def test_mola_around_it(etf_vit: Callable[..., Any], data: Dataset, plain_sgd: dict[str, Any]) -> None:
    """Experts of tasks that share one label space, and one head for all of them."""

    class TaskTrainer(FedGELAMixin, MoLAMixin, Trainer):
        pass

    @dataclass
    class Config(MoLAArguments, FedGELAConfig):
        pass

    model: Any = get_peft_model(etf_vit(), MoLAConfig(target_modules=["q_proj", "v_proj"], num_experts=3, r=2))
    before = _weights(model)
    trainer = TaskTrainer(
        model, Config(**plain_sgd, max_steps=2), train_dataset=data, eval_dataset=data, compute_metrics=_accuracy
    )
    trainer.train()
    changed = [name for name, value in _weights(model).items() if not torch.equal(value, before[name])]
    assert changed and all("mola_" in name for name in changed)
    assert {"eval_personal_accuracy", "eval_task_0_personal_accuracy"} <= trainer.evaluate().keys()


# ------------------------------------------------------------------------------------------------ refusals
class Unnamed(MapDataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return {"pixel_values": torch.zeros(1, 8, 8), "labels": 0}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too few counts": (
        {"class_counts": [1, 2]},
        r"class_counts: found torch.int64 of shape \[2\], allowed is one num",
    ),
    "truth values": ({"class_counts": [True] * 5}, r"class_counts: found torch.bool of shape \[5\]"),
    "negative": ({"class_counts": [1, 2, -1, 0, 0]}, r"class_counts: found \[1, 2, -1, 0, 0\], allowed are finite"),
    "no counts": ({"class_counts": [0] * 5}, "class_counts: found zeros alone"),
    "beyond": ({"labels": [5] * 48}, "labels: found 5 in .*, allowed are 0 to 4"),
    "ignored": ({"labels": [-100, *[0] * 47]}, "labels: found -100 in train_dataset, allowed are 0 to 4, the head's"),
    "numbers": ({"labels": [0.5] * 48}, "labels: found .* with values such as 0.5"),
    "several": ({"labels": [[0, 1]] * 48}, r"labels: found int64 of shape \[48, 2\] in train_dataset"),
    "none": ({"labels": None}, "class_counts: found none, and columns pixel_values as train_dataset"),
    "unknown data": ({"train_dataset": Unnamed()}, "class_counts: found none, and a Unnamed as train_dataset"),
    "regression": ({"problem_type": "regression"}, "problem_type: found 'regression'"),
    "multi-label": ({"problem_type": "multi_label_classification"}, "problem_type: found 'multi_label"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str, etf_vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any]) -> None:
    """Before the first step, and the head is as it was."""
    given, message = REFUSED[what]
    given = {"train_dataset": rows, **given}
    if "labels" in given:
        labels = given.pop("labels")
        rows = rows.remove_columns("labels")
        given["train_dataset"] = rows if labels is None else rows.add_column("labels", labels)
    model = etf_vit()
    model.config.problem_type = given.pop("problem_type", None)
    config = FedGELAConfig(**plain_sgd, fedgela_temperature=0.9)
    with pytest.raises(ValueError, match=message):
        FedGELATrainer(model, config, **given)
    assert model.classifier.temperature == 0.1 and model.classifier.class_weights is None


def test_a_model_without_the_head(vit: Callable[..., Any], rows: Dataset, plain_sgd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"found ViTForImageClassification without .*hf_ext\.models\.replace_classif"):
        FedGELATrainer(vit(), FedGELAConfig(**plain_sgd), train_dataset=rows)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"fedgela_temperature": 0.0}, "fedgela_temperature: found 0.0, allowed are None, numbers > 0"),
        ({"fedgela_feature_norm": "l1"}, "fedgela_feature_norm: found 'l1', allowed are"),
        ({"fedgela_class_weights": "yes"}, "fedgela_class_weights: found 'yes', allowed are True, False"),
    ],
)
def test_options(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedGELAArguments(**option)
