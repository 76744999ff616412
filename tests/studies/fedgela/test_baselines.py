"""FedRS's softmax against its equation, and heads that are not trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from hf_ext.studies.fedgela.baselines import RestrictedSoftmaxMixin, freeze_head

LABELS = [0, 0, 1, 1, 1, 3, 3, 0]


class FedRSTrainer(RestrictedSoftmaxMixin, Trainer):
    pass


def _model() -> Any:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 8, "num_hidden_layers": 1}
    return ViTForImageClassification(ViTConfig(**sizes, num_attention_heads=1, intermediate_size=8, num_labels=5))


@pytest.fixture
def rows() -> Dataset:
    pixels = np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype("float32")
    return Dataset.from_dict({"pixel_values": pixels, "labels": LABELS}).with_format("torch")


def _args(folder: Path) -> TrainingArguments:
    sgd: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    quiet: dict[str, Any] = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    return TrainingArguments(str(folder), max_steps=1, per_device_train_batch_size=8, **sgd, **quiet)


def _weights(model: Any) -> list[Tensor]:
    return [value.detach().clone() for value in model.parameters()]


def test_an_update_by_hand(rows: Dataset, tmp_path: Path) -> None:
    """Of the classes 2 and 4, which are missing, half of the logit is left."""
    model, by_hand = _model(), _model()
    trainer = FedRSTrainer(model, _args(tmp_path), train_dataset=rows)
    trainer.train()
    logits = by_hand(rows[:]["pixel_values"]).logits * torch.tensor([1, 1, 0.5, 1, 0.5])
    F.cross_entropy(logits, rows[:]["labels"]).backward()
    with torch.no_grad():
        for value in by_hand.parameters():
            if value.grad is not None:
                value -= 0.1 * value.grad
    for one, other in zip(_weights(model), _weights(by_hand), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert not model.classifier._forward_hooks


def test_alpha_of_one_is_the_plain_trainer(rows: Dataset, tmp_path: Path) -> None:
    models = [_model() for _ in range(3)]
    FedRSTrainer(models[0], _args(tmp_path), train_dataset=rows, alpha=1).train()
    Trainer(models[1], _args(tmp_path), train_dataset=rows).train()
    FedRSTrainer(models[2], _args(tmp_path), train_dataset=rows, alpha=0).train()
    one, plain, other = map(_weights, models)
    assert all(torch.equal(a, b) for a, b in zip(one, plain, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(other, plain, strict=True))
    with pytest.raises(ValueError, match=r"alpha: found 1\.5, allowed are numbers in \[0, 1\]"):
        FedRSTrainer(_model(), _args(tmp_path), train_dataset=rows, alpha=1.5)


def test_a_frozen_head_stays(rows: Dataset, tmp_path: Path) -> None:
    model = freeze_head(_model())
    before = [value.clone() for value in model.get_submodule("classifier").parameters()]
    Trainer(model, _args(tmp_path), train_dataset=rows).train()
    after = list(model.get_submodule("classifier").parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
