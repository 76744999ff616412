"""What a card knows of a run, with any Trainer, over interruptions too."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import (
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_ext.hub_cards import CardCallback, Method
from hf_ext.hub_cards.callback import _name_of
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
        self.record(terms={"toy_loss": 0.25})
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
    assert "log_history" not in second.card_facts()
    second.train(resume_from_checkpoint=True)
    after = second.card_facts()
    assert (before["environment"]["training time"], after["environment"]["training time"]) == ("20 s", "40 s")
    assert [entry["step"] for entry in after["log_history"]] == [1, 2, 3, 4]
    assert {result.group for result in after["results"]} == {"", "domain 0", "domain 1"}


@pytest.mark.parametrize("kept", ["in a file", "in the state"])
def test_a_plain_trainer_goes_on_with_the_facts_too(
    kept: str, toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    """Of the checkpoint in its folder; earlier versions kept them in Trainer's state. A new run starts without."""
    card = CardCallback("toy")
    arguments = _arguments(tmp_path, save_strategy="steps", save_steps=2)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[card])
    trainer.train()
    file, state = (tmp_path / "checkpoint-2" / name for name in ("card_facts.json", "trainer_state.json"))
    facts = json.loads(file.read_text()) | {"method": {"seen": 2}}
    if kept == "in a file":
        file.write_text(json.dumps(facts))
    else:
        file.unlink()
        saved = json.loads(state.read_text())
        saved["stateful_callbacks"]["hf_ext_card"] = facts
        state.write_text(json.dumps(saved))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert card.card_facts()["facts"] == {"seen": 2}
    assert set(json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["stateful_callbacks"]) == {
        "TrainerControl"
    }
    trainer.train()
    assert card.card_facts()["facts"] == {}


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


# ------------------------------------------------------------------------------------------------ of which weights
def _values(facts: dict[str, Any]) -> dict[str, tuple[float, int | None]]:
    return {row.metric: (row.mean, row.step) for row in facts["results"] if not row.group}


class Steps(TrainerCallback):
    """Makes the loss worse after the first steps, and notes what every evaluation showed."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            model.classifier.bias.copy_(torch.arange(5.0) * (state.global_step - 2) ** 2)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.losses[state.global_step] = metrics["eval_loss"]


def test_the_results_are_those_of_the_best_model(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    class Table(ToyTrainer):
        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            assert self.card is not None
            self.card.add_fact("seen", self.state.global_step)
            return super().evaluation_loop(*args, **kwargs)

    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    arguments = _arguments(tmp_path, **options, load_best_model_at_end=True)
    seen = Steps()
    trainer = Table(model, arguments, train_dataset=data, eval_dataset=data, callbacks=[seen])
    trainer.train()
    assert trainer.state.best_global_step == 2
    facts = trainer.card_facts()
    assert _values(facts) == {"loss": (seen.losses[2], None)}
    assert facts["facts"] == {"seen": 2}
    metrics = trainer.evaluate()
    assert _values(trainer.card_facts()) == {"loss": (metrics["eval_loss"], None)}
    assert metrics["eval_loss"] == pytest.approx(seen.losses[2])


def test_an_evaluation_of_older_weights_says_so(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    class Once(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_evaluate = state.global_step == 3

    trainer = ToyTrainer(model, _arguments(tmp_path), train_dataset=data, eval_dataset=data, callbacks=[Once()])
    trainer.train()
    assert _values(trainer.card_facts())["loss"][1] == 3
    trainer.evaluate()
    assert _values(trainer.card_facts())["loss"][1] is None


def test_several_evaluation_sets_are_told_apart(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    sets = {"photo": data, "sketch": data.select(range(7))}
    trainer = ToyTrainer(model, _arguments(tmp_path), train_dataset=data, eval_dataset=sets, compute_metrics=_accuracy)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.evaluate(data.select(range(5)), metric_key_prefix="test")
    facts = trainer.card_facts()
    assert {name: split["rows"] for name, split in facts["data"].items()} == {
        **{"train": 24, "photo": 24, "sketch": 7, "test": 5}
    }
    found = {(row.group, row.metric): row.mean for row in facts["results"]}
    for name in sets:
        assert found[name, "accuracy"] == metrics[f"eval_{name}_accuracy"]
        assert found[name, "worst_domain_accuracy"] == metrics[f"eval_{name}_worst_domain_accuracy"]
        for domain in (0, 1):
            assert found[f"{name}, domain {domain}", "accuracy"] == metrics[f"eval_{name}_domain_{domain}_accuracy"]
    assert len(found) == len(facts["results"]) and ("test, domain 0", "accuracy") in found


# ------------------------------------------------------------------------------------------------ one folder, two runs
def test_a_trainer_that_only_evaluates(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    trainer = ToyTrainer(model, _arguments(tmp_path, learning_rate=0.125), train_dataset=data)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(dataset="digits")
    second = ToyTrainer(model, _arguments(tmp_path), eval_dataset=data)
    second.create_model_card()
    second.evaluate()
    second.create_model_card()
    text = (tmp_path / "README.md").read_text()
    for part in ("Data: digits.", "| train | 24 |", "| evaluation | 24 |", "| toy_loss |", "| training time |"):
        assert part in text
    assert "| learning_rate | 0.125 |" in text and "| **Toy** | loss |" in text


def test_baselines_stand_beside_the_model(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    trainer: Any = ToyTrainer(model, _arguments(tmp_path), eval_dataset=data, compute_metrics=_accuracy)
    trainer.evaluate()
    trainer.card.add_baseline("the largest class", {"eval_accuracy": 0.25, "eval_domain_0_accuracy": 0.125})
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert "| the largest class | accuracy | 0.250 | 1 |\n| **Toy** | accuracy |" in card.text
    assert "| | the largest class | Toy |" in card.text and "| domain 0 | 0.125 |" in card.text
    assert (
        "seeds |\n|---|---|---|---|\n| **Toy** | loss |" in card.text
    )  # what the model alone has is a table of its own
    assert card.text.count("| system | metric | value | seeds |") == 2
    assert not card.data.eval_results or all(row.metric_value != 0.25 for row in card.data.eval_results)


def test_words_of_the_user_are_kept(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path
) -> None:
    trainer = ToyTrainer(model, _arguments(tmp_path, max_steps=1), train_dataset=data)
    trainer.train()
    trainer.create_model_card()
    with (tmp_path / "README.md").open("a") as file:
        file.write("\nMy words.\n")
    with pytest.warns(UserWarning, match=r"README\.md holds text of somebody's"):
        trainer.create_model_card(license="mit")
    assert (tmp_path / "README.md").read_text().endswith("\nMy words.\n")


# ------------------------------------------------------------------------------------------------ names
@pytest.mark.parametrize("adapted", [False, True])
def test_the_base_model_and_its_head(
    toy: Method, model: ViTForImageClassification, data: Dataset, tmp_path: Path, adapted: bool
) -> None:
    model.name_or_path = "me/base"
    if adapted:
        lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"])
        model = get_peft_model(model, lora)  # type: ignore[assignment, arg-type]
    trainer = ToyTrainer(model, _arguments(tmp_path, max_steps=1), train_dataset=data)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "me/base"
    from_base = 'from_pretrained("me/base", num_labels=5, ignore_mismatched_sizes=True)'
    assert (from_base in card.text) == adapted


def test_the_name_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    data = load_dataset("csv", data_files=str(tmp_path / "x.csv"), cache_dir=str(tmp_path / "cache"))["train"]
    assert _name_of(data) is None  # not "csv"
    data.info.download_checksums = {"hf://datasets/me/digits@0123abc/data/x.parquet": {"num_bytes": 1}}
    assert _name_of(data) == "me/digits"
    data.info.download_checksums, data.info.builder_name = None, "digits"
    assert (_name_of(data), _name_of(None)) == ("digits", None)


def test_an_unknown_method_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="method: found 'nope', allowed are"):
        CardCallback("nope")
