"""FedGELA's updates against the paper's equations, written out here: classes that are missing, accumulation, views."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext.models import ETFClassifier
from hf_ext.trainers.federated import FedGELAConfig, FedGELATrainer

RATE, TEMPERATURE = 0.1, 0.5
#: of 24 rows: classes 2 and 4 are missing, 3 has one row
LABELS = [*[0] * 15, *[1] * 8, 3]
PHI = 5 * torch.tensor([15, 8, 0, 1, 0]).double() / 24


@pytest.fixture
def rows(data: Dataset) -> Dataset:
    return data.select(range(24)).remove_columns(["task_ids", "labels"]).add_column("labels", LABELS)


@pytest.fixture
def etf_model(classifier: Callable[..., Any]) -> Callable[..., Any]:
    """64 inputs, 6 hidden units, a simplex of 5 classes, in float64."""

    def make(*, accumulating: bool = False, **head: Any) -> Any:
        model = classifier(accumulating=accumulating)
        model.classifier = ETFClassifier(6, 5, **{"seed": 1, "temperature": TEMPERATURE, **head}).double()
        return model

    return make


def _features(model: Any, rows: Any) -> Tensor:
    return F.normalize(model.hidden(rows["pixel_values"].flatten(1).double()).tanh(), dim=-1)


def _logits(model: Any, rows: Any, phi: Tensor | float = 1.0) -> Tensor:
    return _features(model, rows) @ model.classifier.weight * phi / TEMPERATURE


def _update(model: Any, rows: Any, phi: Tensor | float) -> None:
    params = list(model.parameters())
    grads = torch.autograd.grad(F.cross_entropy(_logits(model, rows, phi), rows["labels"]), params)
    with torch.no_grad():
        for param, grad in zip(params, grads, strict=True):
            param -= RATE * grad


def _train(model: nn.Module, rows: Dataset, sgd: dict[str, Any], **extra: Any) -> FedGELATrainer:
    trainer = FedGELATrainer(model, FedGELAConfig(**{**sgd, "max_steps": 2, **extra}), train_dataset=rows)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("steps", "accumulating"), [(1, False), (2, False), (3, True)])
def test_two_updates(
    steps: int,
    accumulating: bool,
    rows: Dataset,
    etf_model: Callable[..., Any],
    plain_sgd: dict[str, Any],
    difference: Callable[..., float],
) -> None:
    """On local logits, the missing classes in the softmax with the logit 0."""
    model, by_hand, other = etf_model(accumulating=accumulating), etf_model(), etf_model()
    batches = {"per_device_train_batch_size": 24 // steps, "gradient_accumulation_steps": steps}
    trainer = _train(model, rows, plain_sgd, **batches)
    assert trainer.class_weights is not None
    torch.testing.assert_close(trainer.class_weights, PHI.float())
    for _ in range(2):
        _update(by_hand, rows[:], PHI)
        _update(other, rows[:], 1.0)
    assert difference(model, by_hand) < 1e-8  # phi is float32
    assert difference(model, other) > 1e-4


def test_a_batch_norm_before_the_head(
    rows: Dataset, etf_model: Callable[..., Any], plain_sgd: dict[str, Any], difference: Callable[..., float]
) -> None:
    model, by_hand = etf_model(feature_norm="batch"), etf_model(feature_norm="batch")
    _train(model, rows, plain_sgd, per_device_train_batch_size=24)
    for _ in range(2):
        params, whole = list(by_hand.parameters()), rows[:]
        features = by_hand.hidden(whole["pixel_values"].flatten(1).double()).tanh()
        normed = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-5).sqrt()
        logits = normed @ by_hand.classifier.weight * PHI / TEMPERATURE
        grads = torch.autograd.grad(F.cross_entropy(logits, whole["labels"]), params)
        with torch.no_grad():
            for param, grad in zip(params, grads, strict=True):
                param -= RATE * grad
    for name, value in by_hand.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=0, atol=1e-8)
    assert difference(model.classifier, etf_model(feature_norm="batch").classifier) > 1e-3  # its running statistics


def test_without_class_weights_it_is_the_plain_trainer(
    rows: Dataset, etf_model: Callable[..., Any], plain_sgd: dict[str, Any], difference: Callable[..., float]
) -> None:
    """Bit for bit."""
    model, plain = etf_model(), etf_model()
    trainer = _train(model, rows, plain_sgd, fedgela_class_weights=False, per_device_train_batch_size=8)
    arguments = TrainingArguments(**plain_sgd, max_steps=2, per_device_train_batch_size=8)
    Trainer(plain, arguments, train_dataset=rows).train()
    assert difference(model, plain) == 0
    assert trainer.class_weights is None
    weighed = etf_model()
    _train(weighed, rows, plain_sgd, per_device_train_batch_size=8)
    assert difference(weighed, plain) > 1e-4


def test_both_views_of_one_forward_pass(
    rows: Dataset, data: Dataset, etf_model: Callable[..., Any], plain_sgd: dict[str, Any]
) -> None:
    """Of rows of all classes; the global view under the usual names."""
    model, passes = etf_model(), []
    model.hidden.register_forward_hook(lambda *_: passes.append(1))
    trainer = FedGELATrainer(
        model,
        FedGELAConfig(**plain_sgd, per_device_eval_batch_size=48),
        train_dataset=rows,
        eval_dataset=data,
        compute_metrics=lambda p: {
            "accuracy": np.mean(p.predictions.argmax(-1) == p.label_ids),
            "spread": p.predictions.std(),
        },
    )
    metrics = trainer.evaluate()
    assert len(passes) == 1
    with torch.no_grad():
        views = {"": _logits(model, data[:]), "personal_": _logits(model, data[:], PHI)}
    for view, logits in views.items():
        assert metrics[f"eval_{view}accuracy"] == (logits.argmax(-1) == data[:]["labels"]).double().mean()
        assert metrics[f"eval_{view}spread"] == pytest.approx(logits.std(correction=0).item())
    assert metrics["eval_loss"] == pytest.approx(F.cross_entropy(views[""], data[:]["labels"]).item())
    assert metrics["eval_spread"] != pytest.approx(metrics["eval_personal_spread"])
    output = trainer.predict(data)
    np.testing.assert_allclose(output.predictions, views[""])
    np.testing.assert_allclose(trainer.personal_logits(output.predictions), views["personal_"], rtol=1e-6)
    torch.testing.assert_close(trainer.personal_logits(views[""]), views["personal_"], rtol=1e-6, atol=1e-8)
    assert output.metrics is not None
    assert output.metrics["test_personal_accuracy"] == metrics["eval_personal_accuracy"]
