"""The student of an RD model next to its teacher: size, time and accuracy on the same images."""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from hf_ext._environment import hardware
from hf_ext.hub_cards.card import Result
from hf_ext.models.rd.portable import check_labels
from hf_ext.trainers.passes import evaluation_mode

_NOT_THE_STUDENTS = ("labels", "teacher_features", "teacher_pixel_values")


@dataclass(frozen=True)
class TeacherComparison:
    """Size, time and accuracy of both.

    Args:
        metrics: of `student_accuracy`, `reprogrammed_accuracy`, `student_ms_per_image`, `teacher_ms_per_image`,
            `student_weights` and `teacher_weights` those that there are.
        batch_size: of the batches that were timed.
        hardware: that they were timed on.
        step: of the training, whose weights were compared.
    """

    metrics: dict[str, float]
    batch_size: int
    hardware: str
    step: int

    def results(self, step: int, known: Iterable[Result] = ()) -> list[Result]:
        """Rows of a card whose weights are those after `step`, but for what is known of the student as it is."""
        time = f"ms per image (median, batches of {self.batch_size}, {self.hardware})"
        rows = {
            "student_accuracy": ("student", "accuracy", 1.0),
            "reprogrammed_accuracy": ("reprogrammed features", "accuracy", 1.0),
            "student_ms_per_image": ("student", time, 1.0),
            "teacher_ms_per_image": ("teacher", time, 1.0),
            "student_weights": ("student", "million weights", 1e-6),
            "teacher_weights": ("teacher", "million weights", 1e-6),
        }
        measured_at = None if step == self.step else self.step
        results = [
            Result(
                system,
                metric,
                self.metrics[name] * unit,
                is_method=system == "student",
                step=measured_at,
                published=False,  # an evaluation's accuracy is; the Hub has no place for the rest
            )
            for name, (system, metric, unit) in rows.items()
            if name in self.metrics
        ]
        return [row for row in results if not any(_is_same(row, other) for other in known)]


def _is_same(row: Result, other: Result) -> bool:
    same = all(getattr(row, name) == getattr(other, name) for name in ("metric", "group", "step", "is_method"))
    return same and math.isclose(row.mean, other.mean, abs_tol=1e-6)


def compare(
    trainer: Any, model: Any, batches: Iterable[dict[str, Any]], *, reprogrammed: bool, step: int
) -> TeacherComparison:
    """Run student and teacher over the same batches.

    Modes, random state and weights are afterwards what they were. Times are of forward passes one by one: the median
    over all batches of the first one's size, which both have seen once before. Of several processes all rows count,
    and all times.

    Args:
        trainer: with a `MethodMixin`; its `model` is the RD model or holds it.
        model: the RD model.
        batches: of the trainer's dataloader.
        reprogrammed: whether to tell the accuracy of the reprogrammed features.
        step: of the training, whose weights the model has.

    Raises:
        ValueError: no rows, labels that are not classes, or nothing to take the teacher's features from.
    """
    device, autocast = trainer.args.device, trainer.accelerator.autocast
    size, times, hits = 0, dict[str, list[float]](), dict[str, list[Tensor]]()
    with (
        evaluation_mode(trainer.model),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),  # loaders draw a seed
        torch.no_grad(),
    ):
        for batch in batches:
            with trainer.evaluation_context(batch):
                inputs = trainer._prepare_inputs(batch)
                labels = check_labels(inputs.get("labels"))
                own = {name: value for name, value in inputs.items() if name not in _NOT_THE_STUDENTS}
                forwards = _forwards(trainer.model, model, own, inputs)
                if not size:
                    size = len(labels)
                    for forward in forwards.values():
                        _timed(forward, device, autocast)
                runs = {name: _timed(forward, device, autocast) for name, forward in forwards.items()}
                if len(labels) == size:
                    for name, (_, seconds) in runs.items():
                        times.setdefault(name, []).append(1000 * seconds / size)
                logits = {"student": runs["student"][0].logits}
                if reprogrammed:
                    features = inputs["teacher_features"] if "teacher_features" in inputs else runs["teacher"][0]
                    with autocast():
                        outputs = trainer.model(**own, teacher_features=features, output_details=True)
                    logits["reprogrammed"] = outputs.reprogrammed_logits
            for name, values in logits.items():
                right = trainer.accelerator.gather_for_metrics(values.argmax(-1) == labels)
                hits.setdefault(name, []).append(right)
    if not size:
        raise ValueError("eval_dataset: found no rows, allowed are data with one or more")
    metrics = {f"{name}_accuracy": torch.cat(parts).float().mean().item() for name, parts in hits.items()}
    metrics |= {f"{name}_ms_per_image": statistics.median(gather_object(values)) for name, values in times.items()}
    metrics["student_weights"] = count_parameters(model.student)
    if "teacher" in times and isinstance(model.teacher, nn.Module):
        metrics["teacher_weights"] = count_parameters(model.teacher)
    return TeacherComparison(metrics, size, _described(device), step)


def count_parameters(model: nn.Module) -> int:
    """How many numbers a model's parameters hold."""
    return sum(weight.numel() for weight in model.parameters())


def _forwards(
    whole: nn.Module, model: Any, own: dict[str, Any], inputs: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """A forward pass of the student alone and, where it can be run, one of the teacher alone.

    Raises:
        ValueError: neither a teacher that can be run nor its features.
    """
    forwards: dict[str, Callable[[], Any]] = {"student": partial(whole, **own)}
    images = {name: inputs[name] for name in ("pixel_values", "teacher_pixel_values") if name in inputs}
    if model.reads_teacher():
        forwards["teacher"] = partial(model.get_teacher_features, **images)
    elif "teacher_features" not in inputs:
        model.get_teacher_features(**images)  # says what is missing
    return forwards


def _timed(
    forward: Callable[[], Any], device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
) -> tuple[Any, float]:
    """What a forward pass gives, and its seconds."""
    _wait(device)
    start = time.perf_counter()
    with autocast():  # one each: weights that are trained would stay cast from pass to pass, the teacher's would not
        output = forward()
    _wait(device)
    return output, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _described(device: torch.device) -> str:
    threads = f", torch threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    return hardware(device.type) + threads
