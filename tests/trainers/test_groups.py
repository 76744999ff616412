"""Metrics of groups: whatever Trainer evaluates is evaluated, and what groups have is right."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from hf_ext.trainers import MethodMixin
from hf_ext.trainers.groups import worst

Metrics = Callable[..., dict[str, Any]]


class GroupedMixin(MethodMixin):
    @property
    def own_columns(self) -> tuple[str, ...]:
        return (*super().own_columns, "task_ids")

    @property
    def groups(self) -> dict[str, str]:
        return super().groups | {"task": "task_ids"}


class Grouped(GroupedMixin, Trainer):
    pass


def _right(prediction: EvalPrediction) -> dict[str, Any]:
    return {"right": int((prediction.predictions.argmax(-1) == prediction.label_ids).sum())}


def _trainer(kind: type[Trainer], model: Any, out: Path, metrics: Metrics, **options: Any) -> Trainer:
    extra = {name: options.pop(name) for name in ("preprocess_logits_for_metrics",) if name in options}
    quiet: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    args = TrainingArguments(str(out), per_device_eval_batch_size=10, **quiet, **options)
    return kind(model, args, compute_metrics=metrics, **extra)


def _with_inputs(prediction: EvalPrediction) -> dict[str, Any]:
    assert prediction.inputs is not None and prediction.losses is None
    return {**_right(prediction), "brightness": float(prediction.inputs.astype("float64").mean())}


def _with_losses(prediction: EvalPrediction) -> dict[str, Any]:
    assert prediction.losses is not None
    return {**_right(prediction), "perplexity": float(np.exp(np.mean(prediction.losses)))}


def _with_both(prediction: EvalPrediction) -> dict[str, Any]:
    _, labels, inputs, losses = prediction
    assert len(labels) == len(inputs)
    return {**_right(prediction), "losses": len(losses)}


def _of_batches(prediction: EvalPrediction) -> dict[str, Any]:
    assert all(isinstance(part, list) for part in (prediction.predictions, prediction.label_ids, prediction.inputs))
    assert all(len(batch) for batch in prediction.label_ids)
    batches = zip(prediction.predictions, prediction.label_ids, prediction.inputs, strict=True)
    counts = [(int((logits.argmax(-1) == labels).sum()), len(inputs)) for logits, labels, inputs in batches]
    return {"right": sum(right for right, _ in counts), "rows": sum(rows for _, rows in counts)}


EVALUATIONS: dict[str, tuple[Metrics, dict[str, Any]]] = {
    "inputs": (_with_inputs, {"include_for_metrics": ["inputs"]}),
    "losses": (_with_losses, {"include_for_metrics": ["loss"]}),
    "both": (_with_both, {"include_for_metrics": ["inputs", "loss"]}),
    "batches": (_of_batches, {"include_for_metrics": ["inputs"], "eval_do_concat_batches": False}),
    "accumulated": (_with_inputs, {"include_for_metrics": ["inputs"], "eval_accumulation_steps": 2}),
    "dict": (lambda p: {**_right(p), "PER": {"f1": np.float32(0.5), "number": 3}}, {}),
    "array": (lambda p: {**_right(p), "f1_per_class": np.arange(3.0)}, {}),
    "list": (lambda p: {**_right(p), "per_class": [0.5, None]}, {}),
    "None": (lambda p: {**_right(p), "auc": None}, {}),
    "text": (lambda p: {**_right(p), "worst_class": "fear"}, {}),
    "tensor": (lambda p: {**_right(p), "tensor": torch.tensor(0.25)}, {}),
    "prefixed": (lambda p: {"eval_right": _right(p)["right"]}, {}),
}


@pytest.mark.filterwarnings("ignore:include_for_metrics")
@pytest.mark.parametrize("case", EVALUATIONS)
def test_whatever_trainer_evaluates(case: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """As it does, with every group's rows beside; the last batch is a smaller one."""
    metrics, options = EVALUATIONS[case]
    plain = _trainer(Trainer, vit(), tmp_path, metrics, **options).evaluate(data)
    grouped = _trainer(Grouped, vit(), tmp_path, metrics, **options).evaluate(data)
    for name in set(plain) - {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}:
        if "preparation_time" not in name:
            assert np.array_equal(grouped[name], plain[name]), name
    logits = vit().eval()(data["pixel_values"][:]).logits
    right, tasks = logits.argmax(-1) == data["labels"][:], data["task_ids"][:]
    of_groups = [grouped[f"eval_task_{task}_right"] for task in range(3)]
    assert of_groups == [int(right[tasks == task].sum()) for task in range(3)]
    assert grouped["eval_worst_task_right"] == min(of_groups)
    own = {name.removeprefix("eval_") for name in plain if "_per_second" not in name}
    own -= {"loss", "runtime", "model_preparation_time", "epoch"}
    assert {f"eval_task_{task}_{name}" for task in range(3) for name in own} <= set(grouped)


def test_the_inputs_of_a_group_are_its_own(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    metrics = _trainer(Grouped, vit(), tmp_path, _with_inputs, include_for_metrics=["inputs"]).evaluate(data)
    for task in range(3):
        own = data["pixel_values"][:][data["task_ids"][:] == task]
        assert metrics[f"eval_task_{task}_brightness"] == pytest.approx(own.double().mean().item(), abs=1e-9)


def test_losses_of_groups_are_not_known(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """A Trainer's are means of batches, in which groups are mixed; it is said once."""
    trainer = _trainer(Grouped, vit(), tmp_path, _with_losses, include_for_metrics=["loss"])
    with pytest.warns(UserWarning, match="include_for_metrics: found 'loss', of groups the losses are NaN"):
        metrics = trainer.evaluate(data)
    assert math.isnan(metrics["eval_task_0_perplexity"]) and math.isnan(metrics["eval_worst_task_perplexity"])
    assert metrics["eval_perplexity"] > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.evaluate(data)


def test_a_function_with_a_state_of_its_own(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """`batch_eval_metrics`: groups would get into the state, in `predict` too."""

    class Counter:
        seen = 0

        def __call__(self, prediction: EvalPrediction, compute_result: bool = False) -> dict[str, Any]:
            self.seen += len(prediction.label_ids)
            return {"seen": self.seen} if compute_result else {}

    counter = Counter()
    trainer = _trainer(Grouped, vit(), tmp_path, counter, batch_eval_metrics=True)
    with pytest.warns(UserWarning, match="batch_eval_metrics: found True, the metrics of groups are left out"):
        metrics = trainer.evaluate(data)
    assert metrics["eval_seen"] == 48 and not any("task" in name for name in metrics)
    assert trainer.predict(data).metrics["test_seen"] == 96 and counter.seen == 96


def test_a_group_for_which_a_metric_does_not_exist(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """As the area under a curve of one class: the group is left out, which is said once."""

    def metrics(prediction: EvalPrediction) -> dict[str, Any]:
        if len(prediction.label_ids) == len(few):
            raise ValueError("Only one class is present")
        return _right(prediction)

    few = [task for task in data["task_ids"] if task == 2]
    trainer = _trainer(Grouped, vit(), tmp_path, metrics)
    with pytest.warns(UserWarning, match=r"ValueError \(Only one class is present\) for task 2, left out"):
        found = trainer.evaluate(data)
    assert "eval_task_2_right" not in found
    assert found["eval_worst_task_right"] == min(found[f"eval_task_{task}_right"] for task in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.evaluate(data)


def test_a_function_that_fails_fails(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """For all samples, as ever; and the Trainer has the user's function back."""

    def metrics(prediction: EvalPrediction) -> dict[str, Any]:
        raise ZeroDivisionError

    trainer = _trainer(Grouped, vit(), tmp_path, metrics)
    with pytest.raises(ZeroDivisionError):
        trainer.evaluate(data)
    assert trainer.compute_metrics is metrics


@pytest.mark.parametrize("how", ["sums", "no rows"])
def test_predictions_that_are_not_rows(how: str, vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """What `preprocess_logits_for_metrics` makes of a batch may be anything."""

    def preprocess(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.sum(dim=0) if how == "sums" else logits.sum()

    trainer = _trainer(
        *(Grouped, vit(), tmp_path, lambda p: {"sum": float(p.predictions.sum())}),
        preprocess_logits_for_metrics=preprocess,
    )
    with pytest.warns(UserWarning, match="where there are 48 samples"):
        metrics = trainer.evaluate(data)
    assert "eval_sum" in metrics and not any("task" in name for name in metrics)


def test_names_of_the_users_own(vit: Callable[..., Any], data: Dataset, tmp_path: Path) -> None:
    """What `compute_metrics` calls as a group's metric stays; a prefix given by position is one."""
    trainer = _trainer(Grouped, vit(), tmp_path, lambda p: {**_right(p), "task_0_right": -1, "worst_task_right": -2})
    metrics = trainer.evaluate(data)
    assert (metrics["eval_task_0_right"], metrics["eval_worst_task_right"]) == (-1, -2)
    loader = trainer.get_eval_dataloader(data)
    output = trainer.evaluation_loop(loader, "Evaluation", None, None, "own")
    assert output.metrics is not None and output.metrics["own_task_1_right"] == metrics["eval_task_1_right"]


@pytest.mark.parametrize("values", [[math.nan, 0.3, 0.2], [0.3, math.nan, 0.2], [0.3, 0.2, math.nan]])
def test_the_worst_is_one_of_those_that_are_known(values: list[float]) -> None:
    assert worst("auc", values) == 0.2
    assert worst("token_loss", values) == worst("wer", values) == worst("ppl_perplexity", values) == 0.3
    assert worst("answer", values) == worst("precision_parameter", values) == 0.2  # these only end like errors
    assert worst("char_error_rate", values) == worst("Loss", values) == 0.3
    assert math.isnan(worst("auc", [math.nan])) and worst("count", [10**400, 2]) == 2
