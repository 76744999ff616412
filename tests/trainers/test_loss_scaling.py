"""Terms that a mixin adds to a loss, under gradient accumulation: what the update follows is written out here.

And models whose own loss is a mean where Trainer takes it for a part of a sum: found before the first step, said once.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_ext.trainers import MethodMixin


class _WithTerms(MethodMixin, Trainer):
    """Adds three times the mean of the squared logits, and twice the sum of the first ones."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        logits = outputs["logits"]
        loss = self.add_mean_term(loss, 3 * logits.square().mean(), num_items_in_batch)
        loss = self.add_sum_term(loss, 2 * logits[:, 0].sum(), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def _own(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["batch mean", "num_items_in_batch", "compute_loss_func"])
def test_terms_of_a_mean_and_of_a_sum(
    kind: str,
    steps: int,
    data: Dataset,
    classifier: Callable[..., nn.Module],
    plain_sgd: dict[str, Any],
    difference: Callable[[nn.Module, nn.Module], float],
) -> None:
    accumulating = kind != "batch mean"
    model, by_hand = classifier(accumulating=accumulating), classifier()
    arguments = TrainingArguments(
        **plain_sgd, max_steps=1, per_device_train_batch_size=12 // steps, gradient_accumulation_steps=steps
    )
    own = _own if kind == "compute_loss_func" else None
    rows = data.remove_columns("task_ids")
    trainer = _WithTerms(model, arguments, train_dataset=rows, compute_loss_func=own)
    trainer.train()
    batch = data[:12]
    logits = by_hand(batch["pixel_values"])["logits"]
    loss = F.cross_entropy(logits, batch["labels"]) + 3 * logits.square().mean() + 2 * logits[:, 0].sum()
    loss.backward()
    with torch.no_grad():
        for param in by_hand.parameters():
            assert param.grad is not None
            param.sub_(0.1 * param.grad)
    assert difference(model, by_hand) < 1e-12
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item())


def test_a_loss_without_a_count_of_items_is_a_mean(
    data: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any]
) -> None:
    """Even of a model that could take one: Trainer divides, and the sum must not be divided."""
    arguments = TrainingArguments(**plain_sgd, gradient_accumulation_steps=4)
    trainer = _WithTerms(classifier(accumulating=True), arguments, train_dataset=data)
    trainer.current_gradient_accumulation_steps = 4
    assert (trainer.sum_scale(None), trainer.sum_scale(7)) == (4, 1)


# ------------------------------------------------------------------------------------------------ the model's own loss
class _Plain(MethodMixin, Trainer):
    pass


def _bert(dropout: float = 0.1) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes, **rates))


@pytest.fixture
def texts() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset.from_dict({"input_ids": rng.integers(0, 40, (24, 6)), "labels": rng.integers(0, 3, 24)})


def _scale_warnings(
    kind: type[Trainer], model: Any, rows: Any, arguments: TrainingArguments, **keywords: Any
) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = kind(model, arguments, train_dataset=rows, **keywords)
        trainer.train()
        trainer.train()
    return [str(each.message) for each in caught if str(each.message).startswith("num_items_in_batch")]


def test_a_mean_that_is_multiplied_is_said_once(
    texts: Dataset, plain_sgd: dict[str, Any], difference: Callable[[nn.Module, nn.Module], float]
) -> None:
    """What the warning says is true, what it advises helps, and looking leaves no trace."""
    split = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    whole = {"max_steps": 1, "per_device_train_batch_size": 12}
    found, mended, expected = _bert(0.0), _bert(0.0), _bert(0.0)
    (message,) = _scale_warnings(_Plain, found, texts, TrainingArguments(**plain_sgd, **split))
    assert "a BertForSequenceClassification whose" in message and "gradient by 3 (gradient_acc" in message
    assert "model.accepts_loss_kwargs = False" in message and "average_tokens" not in message
    mended.accepts_loss_kwargs = False
    assert _scale_warnings(_Plain, mended, texts, TrainingArguments(**plain_sgd, **split)) == []
    assert _scale_warnings(_Plain, expected, texts, TrainingArguments(**plain_sgd, **whole)) == []
    assert difference(mended, expected) < 1e-6 < difference(found, expected)


def test_a_first_update_of_which_no_label_counts(texts: Dataset, plain_sgd: dict[str, Any]) -> None:
    """Does not tell; the next one does."""
    split = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    first = Dataset.from_dict(texts.to_dict() | {"labels": [-100] * 12 + texts["labels"][12:]})
    assert len(_scale_warnings(_Plain, _bert(), first, TrainingArguments(**plain_sgd, **split))) == 1


@pytest.mark.parametrize("adapted", [False, True])
def test_looking_leaves_no_trace(
    adapted: bool, texts: Dataset, plain_sgd: dict[str, Any], difference: Callable[[nn.Module, nn.Module], float]
) -> None:
    arguments = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    models: list[Any] = []
    for kind, expected in ((_Plain, 1), (Trainer, 0)):
        model: Any = _bert()
        if adapted:
            lora = LoraConfig(target_modules=["query"], modules_to_save=["classifier"], lora_dropout=0.2)
            model = get_peft_model(model, lora)
        said = _scale_warnings(kind, model, texts, TrainingArguments(**plain_sgd, **arguments))
        assert len(said) == expected
        models.append(model)
    assert difference(*models) == 0


def test_losses_that_are_as_trainer_expects(
    data: Dataset, texts: Dataset, classifier: Callable[..., nn.Module], plain_sgd: dict[str, Any]
) -> None:
    """By the model, by a function, by a Trainer of a user's own; and a model that takes no such number."""
    split = {**plain_sgd, "max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    arguments, rows = TrainingArguments(**split), data.remove_columns("task_ids")
    assert _scale_warnings(_Plain, classifier(accumulating=True), rows, arguments) == []
    assert _scale_warnings(_Plain, classifier(), rows, arguments) == []
    assert _scale_warnings(_Plain, _bert(), texts, arguments, compute_loss_func=_own) == []
    smoothed = TrainingArguments(**split, label_smoothing_factor=0.1)
    assert _scale_warnings(_Plain, _bert(), texts, smoothed) == []

    class Sums(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = F.cross_entropy(outputs.logits, labels, reduction="sum") / (num_items_in_batch or len(labels))
            return (loss, outputs) if return_outputs else loss

    class MethodWithSums(MethodMixin, Sums):
        pass

    assert _scale_warnings(MethodWithSums, _bert(), texts, arguments) == []


@pytest.mark.slow
def test_processes_multiply_too(run_script: Any, tmp_path: Path) -> None:
    """And the option that the warning names makes two processes one."""
    script = Path(__file__).parent / "scripts" / "train.py"

    def run(name: str, **training: Any) -> dict[str, Any]:
        sgd = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 2, **training}
        places = {"output_dir": str(tmp_path / name), "weights": str(tmp_path / f"{name}.safetensors")}
        return {"method": "bert", "training": sgd, **places}

    half = {"per_device_train_batch_size": 4}
    runs = [run("found", **half), run("mended", **half, average_tokens_across_devices=False)]
    found, mended = (result["warnings"] for result in run_script(script, {"runs": runs}, processes=2)["runs"])
    run_script(script, {"runs": [run("one", per_device_train_batch_size=8)]})
    assert len([text for text in found if "gradient by 2 (processes). What" in text]) == 1
    assert not [text for text in mended if "num_items_in_batch" in text]
    one, two, wrong = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "mended", "found"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6
    assert max((one[name] - wrong[name]).abs().max().item() for name in one) > 1e-4
