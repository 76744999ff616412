"""What a card knows of a run, with any Trainer, over interruptions too."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import (
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_ext.hub_cards import CardCallback, Method
from hf_ext.trainers import MethodMixin


@dataclass
class ToyArguments(TrainingArguments):
    toy_strength: float = field(default=0.5)


class ToyMixin(MethodMixin):
    method = "toy"

    @property
    def own_columns(self) -> tuple[str, ...]:
        return (*super().own_columns, "task_ids")

    @property
    def groups(self) -> dict[str, str]:
        return super().groups | {"domain": "task_ids"}

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.record(toy_loss=0.25)
        return super().compute_loss(model, inputs, *args, **kwargs)


class ToyTrainer(ToyMixin, Trainer):
    pass


@pytest.fixture
def model() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=5))


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(24, 1, 8, 8)).astype("float32")
    rows = {"pixel_values": pixels, "labels": rng.integers(0, 5, 24), "task_ids": np.arange(24) % 2}
    return Dataset.from_dict(rows).with_format("torch")


def _arguments(folder: Path, **options: Any) -> ToyArguments:
    shared = {"max_steps": 4, "logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True}
    return ToyArguments(output_dir=str(folder), **{**shared, **options})


def _accuracy(prediction: EvalPrediction) -> Mapping[str, float]:
    return {"accuracy": np.float32((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_a_plain_trainer_with_the_callback(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    card = CardCallback("toy")
    arguments = _arguments(tmp_path)
    trainer = Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=_accuracy, callbacks=[card]
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    card.create_card(tmp_path, license="mit")
    read = ModelCard.load(tmp_path / "README.md")
    assert {result.metric_type: result.metric_value for result in read.data.eval_results} == pytest.approx(
        {"loss": metrics["eval_loss"], "accuracy": metrics["eval_accuracy"]}, abs=1e-6
    )
    assert (read.data.license, read.data.pipeline_tag) == ("mit", "image-classification")
    for line in ("| toy_strength | 0.5 |", "| training_steps | 4 |", "| optimizer | adamw_torch", "| processes | 1 |"):
        assert line in read.text
    assert "| train | 24 |" in read.text and "| evaluation | 24 |" in read.text
    first, last = (f"{trainer.state.log_history[step]['loss']:.4g}" for step in (0, 3))
    assert f"| loss | {first} | {last} |" in read.text
    assert (tmp_path / "losses.png").is_file()
    assert "training time" in read.text and torch.__version__.partition("+")[0] in read.text


def test_a_method_says_nothing_of_cards_but_its_name(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    trainer = ToyTrainer(model, _arguments(tmp_path), train_dataset=data, eval_dataset=data, compute_metrics=_accuracy)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(model_name="mine", tags="x", dataset=["a", "b"], finetuned_from="me/base")
    read = ModelCard.load(tmp_path / "README.md")
    assert "It adds `1`." in read.text and "| toy_loss | 0.25 | 0.25 |" in read.text
    assert "Data: a, b." in read.text
    assert (read.data.tags, read.data.base_model, read.data.model_name) == (["hf_ext", "toy", "x"], "me/base", "mine")
    found = {(result.dataset_config, result.metric_type): result.metric_value for result in read.data.eval_results}
    assert found == pytest.approx(
        {
            (None, "loss"): metrics["eval_loss"],
            (None, "accuracy"): float(metrics["eval_accuracy"]),
            ("domain 0", "accuracy"): float(metrics["eval_domain_0_accuracy"]),
            ("domain 1", "accuracy"): float(metrics["eval_domain_1_accuracy"]),
            (None, "worst_domain_accuracy"): float(metrics["eval_worst_domain_accuracy"]),
        },
        abs=1e-6,
    )


def test_the_fingerprint_is_that_of_the_rows(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    def fingerprint(rows: Dataset) -> str:
        trainer = ToyTrainer(model, _arguments(tmp_path, max_steps=1), train_dataset=rows)
        trainer.train()
        found: str = trainer.card_facts()["data"]["train"]["fingerprint"]
        return found

    assert fingerprint(data) == fingerprint(data)
    assert fingerprint(data) != fingerprint(data.select(range(20)))


def test_a_resumed_run_goes_on_with_the_facts(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 10))  # every look at it takes ten seconds
    monkeypatch.setattr("hf_ext.hub_cards.callback.time.perf_counter", lambda: next(clock))

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 2

    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    shared: dict[str, Any] = {"train_dataset": data, "eval_dataset": data, "compute_metrics": _accuracy}
    first = ToyTrainer(model, _arguments(tmp_path, **options), callbacks=[Stop()], **shared)
    first.train()
    before = first.card_facts()
    second = ToyTrainer(model, _arguments(tmp_path, **options), **shared)
    losses = second.card_facts()["log_history"]
    assert not losses
    second.train(resume_from_checkpoint=True)
    after = second.card_facts()
    assert (before["environment"]["training time"], after["environment"]["training time"]) == ("20 s", "40 s")
    assert [entry["step"] for entry in after["log_history"]] == [1, 2, 3, 4]
    assert {result.group for result in after["results"]} == {"", "domain 0", "domain 1"}


def test_a_checkpoint_without_facts_can_be_resumed(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    options = {"save_strategy": "steps", "save_steps": 2}
    Trainer(model, _arguments(tmp_path, max_steps=2, **options), train_dataset=data).train()
    trainer = ToyTrainer(model, _arguments(tmp_path, **options), train_dataset=data)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.card_facts()["data"]["train"]["rows"] == 24


def test_a_second_training_forgets_the_first(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    trainer = ToyTrainer(model, _arguments(tmp_path), train_dataset=data, eval_dataset=data, compute_metrics=_accuracy)
    trainer.train()
    trainer.evaluate()
    assert trainer.card_facts()["results"]
    trainer.train()
    assert not trainer.card_facts()["results"]


def test_an_unknown_method_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="method: found 'nope', allowed are"):
        CardCallback("nope")
