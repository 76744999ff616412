"""What demos share: a display of runs, tables of their results."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from datasets import DatasetDict, disable_progress_bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.utils import logging

from hf_ext.hub_cards import Result
from hf_ext.hub_cards.create import refuse_handwritten
from hf_ext.studies.training import quiet


class Demo:
    """A display of `total` runs, each with a bar of its own: `with Demo(out, text, total=9, seeds=3) as view`.

    Args:
        out: folder for the result, made if needed; it is `view.folder`.
        text: shown first.
        total: number of runs.
        **counts: options of the command, for example `seeds=3`.

    Raises:
        ValueError: a count below one, or a folder whose README.md somebody has written.
    """

    def __init__(self, out: str, text: str, *, total: int, **counts: int) -> None:
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"--{name}: found {value}, allowed are integers >= 1")
        torch.set_num_threads(1)  # the models are too small to share out
        logging.disable_progress_bar()
        disable_progress_bars()  # of datasets
        warnings.filterwarnings("ignore", category=FutureWarning)  # of one library to another
        self.console = Console()
        self.console.print(text)
        self.folder = Path(out)
        self.folder.mkdir(parents=True, exist_ok=True)
        refuse_handwritten(self.folder)  # not after minutes of training
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console)
        self._total = self.progress.add_task("all runs", total=total)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def watch(self, trainer: Trainer, description: str) -> Trainer:
        """The same trainer, with its steps in the display and nothing else printed."""
        quiet(trainer).add_callback(_Bar(self.progress, description))
        return trainer

    def advance(self) -> None:
        """One run is done."""
        self.progress.advance(self._total)

    def finish(self, title: str, results: Sequence[Result], *, form: str = ".3f") -> None:
        """Print the table of results on all data: mean and spread of a metric, or the means of several."""
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
        self.console.print(table)
        self.console.print(f"ready for the Hub: {self.folder}/ (README.md shows how to load it)")


class _Bar(TrainerCallback):
    """Shows the steps of one run in the demo's display."""

    def __init__(self, progress: Progress, description: str) -> None:
        self.progress = progress
        self.description = description

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.task = self.progress.add_task(self.description, total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.advance(self.task)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.remove_task(self.task)


def demo_arguments(
    kind: Callable[..., TrainingArguments], steps: int, learning_rate: float, seed: int, **options: Any
) -> TrainingArguments:
    """Arguments for a short run that saves nothing."""
    return kind(
        output_dir=tempfile.gettempdir(),
        max_steps=steps,
        seed=seed,
        **{
            "learning_rate": learning_rate,
            "lr_scheduler_type": "cosine",
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 256,
            "logging_steps": max(1, steps // 20),
            "save_strategy": "no",
            "report_to": "none",
            "dataloader_pin_memory": False,
            **options,
        },
    )


def demo_vit(names: Sequence[str], seed: int) -> ViTForImageClassification:
    """A small ViT for 8 x 8 pixels and these classes."""
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
    )
    return ViTForImageClassification(config)


def pretrained_vit(data: DatasetDict, steps: int, seed: int, view: Demo) -> ViTForImageClassification:
    """The small ViT, trained on the split `pretrain` of the embedded digits."""
    model = demo_vit(data["train"].features["labels"].names, seed)
    arguments = demo_arguments(TrainingArguments, steps, 2e-3, seed)
    trainer = Trainer(model=model, args=arguments, train_dataset=data["pretrain"])
    view.watch(trainer, "pretraining the base model").train()
    return model


def over_seeds(
    system: str,
    values: Sequence[float],
    *,
    is_method: bool,
    metric: str = "accuracy",
    published: bool = True,
    group: str = "",
) -> Result:
    """Mean and standard deviation of a system's values."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Result(system, metric, float(np.mean(values)), std, len(values), is_method, group, published=published)
