"""`hf-ext demo`: trains a method and its baselines over seeds and leaves a folder that is ready for the Hub."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict, disable_progress_bars
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTForImageClassification
from transformers.utils import logging

from hf_ext import _small_models
from hf_ext._reports import spread
from hf_ext._runs import Arguments, arguments, progress_bars, quiet
from hf_ext.hub_cards import Result, create_card
from hf_ext.hub_cards.create import refuse_handwritten

#: a system's name, its scores (of metrics, or accuracies by group, "" for all), and its Trainer if it was trained
Scored = tuple[str, Mapping[str, float], Any]


def classifier_example(data: str, rows: str = "[:400]") -> str:
    """Code for the card of a classifier of images, `model` there: its accuracy on test rows of embedded data."""
    return f"""import hf_ext

test = hf_ext.data.load("{data}")["test"]{rows}
logits = model(pixel_values=test["pixel_values"]).logits
print((logits.argmax(-1) == test["labels"]).float().mean())
"""


@dataclass(frozen=True)
class DemoRun:
    """One seed of a demo: what a method trains its systems with.

    Args:
        seed: of data, models and training.
        steps: of every training.
        folder: the result's; further files than those of the system shown are saved there with seed 0.
        bars: the display.
    """

    seed: int
    steps: int
    folder: Path
    bars: Progress

    def arguments(self, kind: type[Arguments], learning_rate: float, **options: Any) -> Arguments:
        """Arguments for a training that saves nothing; its log has about twenty entries."""
        options = {"steps": self.steps, **options}
        options = {"logging_steps": max(1, options["steps"] // 20), **options}
        return arguments(kind, learning_rate=learning_rate, seed=self.seed, logging_strategy="steps", **options)

    def train(self, trainer: Trainer, name: str) -> None:
        """Train, with the steps in the display and nothing else printed."""
        quiet(trainer).add_callback(_StepBar(self.bars, name))
        trainer.train()
        self.bars.advance(self.bars.task_ids[0])

    def vit(self, names: Sequence[str]) -> ViTForImageClassification:
        """A small ViT for 8 x 8 pixels and these classes, with the seed's random weights."""
        torch.manual_seed(self.seed)
        return ViTForImageClassification(_small_models.vit(**_small_models.class_names(names)))

    def pretrained_vit(self, data: DatasetDict) -> ViTForImageClassification:
        """The small ViT, trained on the split `pretrain` of the embedded digits."""
        model = self.vit(data["train"].features["labels"].names)
        args = self.arguments(TrainingArguments, 2e-3, steps=2 * self.steps)
        self.train(Trainer(model=model, args=args, train_dataset=data["pretrain"]), "pretraining the base model")
        return model


def run_demo(
    method: str,
    out: str,
    *,
    seeds: int,
    steps: int,
    text: str,
    found: str,
    systems: Callable[[DemoRun], Iterable[Scored]],
    trainings: int,
    shown: str,
    title: str,
    card: Mapping[str, Any],
    methods: Sequence[str] = (),
    metrics: Sequence[str] = (),
    form: str = ".3f",
) -> None:
    """Train and score a method's systems with every seed; leave the shown one's model with a card of the results.

    Args:
        method: its name in the registry.
        out: folder for the result, made if needed.
        seeds, steps: options of the command.
        text: printed first: what is compared.
        found: printed after the table: what the studies have found in this case and in others.
        systems: trains the systems of one seed and yields each with its scores.
        trainings: how many that are.
        shown: the system whose model with seed 0 is left in the folder.
        title: of the printed table.
        card: arguments of the card besides the results, such as `dataset` and `example`.
        methods: the systems that are the method, if not only the one shown.
        metrics: names of the scores; where there are none, they are accuracies by group.
        form: format of a number in the printed table.

    Raises:
        ValueError: fewer than one seed or step, or a folder whose README.md somebody has written.
    """
    for name, value in (("seeds", seeds), ("steps", steps)):
        if value < 1:
            raise ValueError(f"--{name}: found {value}, allowed are integers >= 1")
    torch.set_num_threads(1)  # the models are too small to share out
    logging.disable_progress_bar()
    disable_progress_bars()  # of datasets
    warnings.filterwarnings("ignore", category=FutureWarning)  # of one library to another
    console, folder = Console(), Path(out)
    console.print(text)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_handwritten(folder)  # not after minutes of training

    scores: dict[str, list[Mapping[str, float]]] = {}
    with progress_bars(console) as bars:
        bars.add_task("all runs", total=seeds * trainings)
        for seed in range(seeds):
            for system, values, trainer in systems(DemoRun(seed, steps, folder, bars)):
                scores.setdefault(system, []).append(values)
                if seed == 0 and system == shown:
                    trainer.evaluate()  # so that the card names the test data
                    trainer.model.save_pretrained(folder)
                    facts = trainer.card_facts()
    results = _over_seeds(scores, shown, methods or (shown,), metrics)
    compared = [row for row in facts.get("results", ()) if not row.published]  # with what the trainer learned from
    common = {
        "license": "apache-2.0",
        "limitations": "A demonstration on small images.",
        "command": f"hf-ext demo {method} --seeds {seeds} --steps {steps}",
    }
    create_card(folder, method=method, run=facts, results=[*results, *compared], **{**common, **card})
    console.print(_table(title, results, form))
    console.print(found)
    console.print(f"ready for the Hub: {folder}/ (README.md shows how to load it)")


def _over_seeds(
    scores: Mapping[str, Sequence[Mapping[str, float]]], shown: str, methods: Sequence[str], metrics: Sequence[str]
) -> list[Result]:
    """Mean and standard deviation of every score of every system."""

    def result(system: str, score: str, metric: str, group: str) -> Result:
        values = [run[score] for run in scores[system]]
        mean, std = spread(values)
        is_method, published = system in methods, system == shown
        return Result(system, metric, mean, std, len(values), is_method, group, published=published)

    if metrics:
        return [result(system, metric, metric, "") for metric in metrics for system in scores]
    return [result(system, group, "accuracy", group) for system, runs in scores.items() for group in runs[0]]


def _table(title: str, results: Sequence[Result], form: str) -> Table:
    """The results on all data: mean and standard deviation of a metric, or the means of several."""
    overall = [row for row in results if not row.group]
    metrics = list(dict.fromkeys(row.metric for row in overall))
    table = Table(title=title)
    table.add_column("system")
    for metric in metrics:
        table.add_column(metric if len(metrics) > 1 else "mean ± std", justify="right")
    for system in dict.fromkeys(row.system for row in overall):
        rows = {row.metric: row for row in overall if row.system == system}
        cells = [f"{rows[metric].mean:{form}}" for metric in metrics]
        if len(metrics) == 1 and (std := rows[metrics[0]].std) is not None:
            cells[0] += f" ± {std:{form}}"
        style = "bold" if all(row.is_method for row in rows.values()) else None
        table.add_row(system, *cells, style=style)
    return table


class _StepBar(TrainerCallback):
    """Shows the steps of one training in the demo's display."""

    def __init__(self, bars: Progress, name: str) -> None:
        self.bars = bars
        self.name = name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.task = self.bars.add_task(f"seed {args.seed}: {self.name}", total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bars.advance(self.task)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bars.remove_task(self.task)
