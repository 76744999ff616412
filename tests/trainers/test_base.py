"""What every method's trainer stands on."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainingArguments, default_data_collator

from hf_ext.functional import per_sample_losses
from hf_ext.trainers import MethodMixin
from hf_ext.trainers.checkpoints import newest_complete_checkpoint, read_state, restore_weights, write_state


class ToyMixin(MethodMixin):
    """Adds the mean square of the logits; needs a column and keeps a counter."""

    weight = 0.1
    steps_seen = 0

    @property
    def own_columns(self) -> tuple[str, ...]:
        return (*super().own_columns, "task_ids")

    @property
    def groups(self) -> dict[str, str]:
        return super().groups | {"task": "task_ids"}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        assert set(inputs) == {"pixel_values", "labels"}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.model.training:
            assert self.batch_columns["task_ids"].shape == inputs["labels"].shape
            self.steps_seen += 1
            term = outputs.logits.square().mean()
            self.record(terms={"square": term})
            loss = self.add_mean_term(loss, self.weight * term, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def checkpoint_state(self) -> dict[str, Any]:
        return super().checkpoint_state() | {"steps_seen": self.steps_seen, "tensor": torch.arange(3.0)}

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        self.steps_seen = state["steps_seen"]
        assert torch.equal(state["tensor"], torch.arange(3.0))


class ToyTrainer(ToyMixin, Trainer):
    pass


def _arguments(out: Path, **extra: Any) -> TrainingArguments:
    defaults = {"max_steps": 4, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 2, "save_strategy": "no"}
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 8}
    return TrainingArguments(output_dir=str(out), **{**defaults, **quiet, **extra})


def _same_weights(one: torch.nn.Module, other: torch.nn.Module, tolerance: float = 0.0) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all((a - b).abs().max() <= tolerance for a, b in pairs)


def test_a_method_with_nothing_to_do_is_the_plain_trainer(
    vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    class Neutral(ToyMixin):
        weight = 0.0

    class NeutralTrainer(Neutral, Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super(ToyMixin, self).compute_loss(*args, **kwargs)

    plain, neutral = vit(), vit()
    Trainer(plain, _arguments(tmp_path), train_dataset=data).train()
    NeutralTrainer(neutral, _arguments(tmp_path), train_dataset=data).train()
    assert _same_weights(plain, neutral)
    assert not _same_weights(plain, vit())


def test_terms_are_averaged_and_logged_with_the_loss(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    trainer = ToyTrainer(vit(), _arguments(tmp_path), train_dataset=data)
    seen: list[float] = []
    record = trainer.record
    trainer.record = lambda terms: (seen.append(float(terms["square"])), record(terms=terms))  # type: ignore[assignment]
    trainer.train()
    logged = [entry["square"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([(seen[0] + seen[1]) / 2, (seen[2] + seen[3]) / 2])


def test_accumulation_leaves_the_update_as_it_is(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    whole, parts = vit(), vit()
    ToyTrainer(whole, _arguments(tmp_path), train_dataset=data).train()
    split = _arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    ToyTrainer(parts, split, train_dataset=data).train()
    assert _same_weights(whole, parts, 1e-6)


def test_columns_survive_a_collator_that_knows_only_its_own(
    vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    def narrow(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        return default_data_collator([{key: row[key] for key in ("pixel_values", "labels")} for row in examples])

    ToyTrainer(vit(), _arguments(tmp_path), data_collator=narrow, train_dataset=data).train()


def test_evaluation_reports_groups(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    def correct(prediction: EvalPrediction) -> dict[str, float]:
        return {"correct": float((prediction.predictions.argmax(-1) == prediction.label_ids).sum())}

    trainer = ToyTrainer(vit(), _arguments(tmp_path), eval_dataset=data, compute_metrics=correct)
    metrics = trainer.evaluate()
    assert sum(metrics[f"eval_task_{task}_correct"] for task in range(3)) == metrics["eval_correct"]
    assert metrics["eval_worst_task_correct"] == min(metrics[f"eval_task_{task}_correct"] for task in range(3))
    predicted = trainer.predict(data)
    first = data[:]["task_ids"].numpy() == 0
    logits, labels = predicted.predictions[first], predicted.label_ids[first]
    assert metrics["eval_task_0_correct"] == (logits.argmax(-1) == labels).sum()
    assert predicted.metrics["test_task_0_correct"] == metrics["eval_task_0_correct"]


# ------------------------------------------------------------------------------------------------ checkpoints
def test_own_state_is_saved_and_restored(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    ToyTrainer(vit(), _arguments(tmp_path, **saving), train_dataset=data).train()
    resumed = ToyTrainer(vit(), _arguments(tmp_path, **saving, max_steps=6), train_dataset=data)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.steps_seen == 6


@pytest.mark.parametrize("broken", ["missing", "cut short"])
def test_resume_takes_the_newest_complete_checkpoint(
    broken: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    ToyTrainer(vit(), _arguments(tmp_path, **saving), train_dataset=data).train()
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    if broken == "missing":
        state.unlink()
    else:
        state.write_text(state.read_text()[:100])
    assert newest_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    resumed = ToyTrainer(vit(), _arguments(tmp_path, **saving), train_dataset=data)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.steps_seen == 4
    with pytest.raises(ValueError, match=r"^Can't find a valid checkpoint at .*2: resume_from_checkpoint: found no '"):
        (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_resume_needs_a_checkpoint(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no complete checkpoint"):
        ToyTrainer(vit(), _arguments(tmp_path), train_dataset=data).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("how", ["resume", "best"])
def test_a_full_vit_gets_all_its_weights_back(
    how: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path
) -> None:
    """ViT saves under older names than its modules have, which Trainer's own loading silently skips."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    if how == "best":
        saving |= {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
        saving |= {"metric_for_best_model": "first", "greater_is_better": True}
    values = iter([1.0, 0.0, 0.0])
    trained = vit()
    kind = type("Ungrouped", (ToyTrainer,), {"groups": {}}) if how == "best" else ToyTrainer
    trainer = kind(
        trained,
        _arguments(tmp_path, **saving),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=(lambda _: {"first": next(values)}) if how == "best" else None,
    )
    trainer.train()
    if how == "best":
        reference = vit(seed=9)
        restore_weights(reference, tmp_path / "checkpoint-2")
        assert _same_weights(trained, reference)
    else:
        fresh = vit(seed=9)
        resumed = ToyTrainer(fresh, _arguments(tmp_path, **saving), train_dataset=data)
        resumed._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
        assert _same_weights(trained, fresh)


def test_weights_of_another_model_are_refused(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    vit(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"resume_from_checkpoint: found .* without .* weights of ViT"):
        restore_weights(vit(num_hidden_layers=2), tmp_path)


def test_state_files(tmp_path: Path) -> None:
    state = {"tensor": torch.arange(4).reshape(2, 2).t(), "number": 1.5, "names": ["a"]}
    write_state(tmp_path / "new", state)
    read = read_state(tmp_path / "new")
    assert torch.equal(read.pop("tensor"), state["tensor"])
    assert read == {"number": 1.5, "names": ["a"]}
    assert read_state(tmp_path) == {}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"method_state.safetensors", "method_state.json"}


# ------------------------------------------------------------------------------------------------ losses
@pytest.mark.parametrize("problem", ["single", "multi", "regression", "tokens", "causal"])
def test_per_sample_losses_average_to_the_usual_loss(problem: str) -> None:
    torch.manual_seed(0)
    shift = problem == "causal"
    if problem == "single":
        logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
        expected = torch.nn.functional.cross_entropy(logits, labels)
    elif problem == "multi":
        logits, labels = torch.randn(6, 4), torch.randint(2, (6, 4)).float()
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    elif problem == "regression":
        logits, labels = torch.randn(6, 1), torch.randn(6)
        expected = torch.nn.functional.mse_loss(logits.squeeze(), labels)
    else:
        logits, labels = torch.randn(6, 5, 7), torch.randint(7, (6, 5))
        labels[:, 0] = -100
        kept = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
        expected = torch.nn.functional.cross_entropy(kept[0].flatten(0, 1), kept[1].flatten())
    losses = per_sample_losses(logits, labels, shift_labels=shift)
    assert losses.shape == (6,)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_per_sample_losses_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match=r"labels: found torch.int64 of shape \(3, 2\)"):
        per_sample_losses(torch.randn(3, 4), torch.zeros(3, 2, dtype=torch.int64))


# ------------------------------------------------------------------------------------------------ cards
def test_a_mixin_without_method_keeps_trainers_card(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    trainer = ToyTrainer(vit(), _arguments(tmp_path), train_dataset=data)
    trainer.train()
    trainer.create_model_card(model_name="toy")
    assert ModelCard.load(tmp_path / "README.md").data.library_name == "transformers"


def test_mixins_cooperate(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    class OtherMixin(MethodMixin):
        @property
        def own_columns(self) -> tuple[str, ...]:
            return (*super().own_columns, "domain_ids")

        def checkpoint_state(self) -> dict[str, Any]:
            return super().checkpoint_state() | {"other": 1}

    class Both(OtherMixin, ToyMixin, Trainer):
        pass

    @dataclass
    class Seen:
        columns: set[str]

    seen = Seen(set())
    rows = data.add_column("domain_ids", [0] * len(data)).with_format("torch")
    trainer = Both(vit(), _arguments(tmp_path, save_strategy="steps", save_steps=4), train_dataset=rows)
    prepare = trainer._prepare_inputs

    def noting(inputs: Any) -> Any:
        prepared = prepare(inputs)
        seen.columns |= set(trainer.batch_columns)
        return prepared

    trainer._prepare_inputs = noting  # type: ignore[method-assign]
    trainer.train()
    assert seen.columns == {"domain_ids", "task_ids"}
    saved = json.loads((tmp_path / "checkpoint-4" / "method_state.json").read_text())
    assert saved == {"steps_seen": 4, "other": 1}


@pytest.mark.parametrize("kind", ["tp", "cp", "sp"])
def test_processes_that_share_rows(kind: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """Tensor, context and sequence parallelism: no method takes part of a row for one."""
    trainer = ToyTrainer(vit(), _arguments(tmp_path), train_dataset=data)
    parallel = SimpleNamespace(**{"tp_size": 1, "cp_size": 1, "sp_size": 1, f"{kind}_size": 2})
    trainer.accelerator.state.parallelism_config = parallel
    try:
        with pytest.raises(
            ValueError, match=f"parallelism_config: found {kind}_size=2, allowed are dp_replicate_size"
        ):
            trainer.check_arguments()
    finally:
        trainer.accelerator.state.parallelism_config = None
    trainer.check_arguments()


def test_weights_that_were_sharded_as_they_were_loaded(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    trainer = ToyTrainer(vit(), _arguments(tmp_path), train_dataset=data)
    trainer.is_distributed_loading_by_transformers = True  # as the model says when the Trainer is made
    with pytest.raises(ValueError, match="model: found weights sharded as they were loaded"):
        trainer.check_arguments()
