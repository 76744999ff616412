"""Short runs of a Trainer that leave nothing behind, and their scores: for demos, studies and benchmarks."""

import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from torch import nn
from torch.utils.data import Dataset as MapDataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def arguments(kind: type[Arguments], *, steps: int, learning_rate: float, seed: int, **options: Any) -> Arguments:
    """Arguments for a run that leaves nothing behind: no checkpoints, no logs, nothing printed."""
    return kind(
        output_dir=tempfile.gettempdir(),
        max_steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        **{
            "lr_scheduler_type": "cosine",
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 256,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "remove_unused_columns": True,
            **options,
        },
    )


def quiet(trainer: Trainer) -> Trainer:
    """The same trainer without anything printed."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def freeze_statistics(model: nn.Module) -> None:
    """Keep BatchNorms in evaluation mode: whatever is trained, and on whichever rows, their statistics stay."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.__dict__["train"] = partial(_unchanged, module)


def _unchanged(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def progress_bars(console: Console | None, *columns: ProgressColumn) -> Progress:
    """A display of bars with counts and times, and with more columns."""
    common = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*common, *columns, console=console)


# ------------------------------------------------------------------------------------------------ scores
def logits(trainer: Trainer, data: MapDataset[Any]) -> NDArray[np.float32]:
    """Logits of every row, `[N, C]`, also if the trainer drops the last incomplete batch of an epoch."""
    trainer.args.dataloader_drop_last = False
    predictions = trainer.predict(data).predictions
    return predictions[0] if isinstance(predictions, tuple) else predictions


def accuracy_on(trainer: Trainer, data: Dataset) -> float:
    """Share of the rows whose `labels` have the largest logit."""
    return float((logits(trainer, data).argmax(-1) == data.with_format("numpy")["labels"][:]).mean())


def group_accuracies(
    predicted: NDArray[np.float32], labels: NDArray[Any], groups: NDArray[Any], names: Sequence[str]
) -> dict[str, float]:
    """Accuracy of every group (task, domain) that occurs, by its name. `predicted` are logits `[N, C]`."""
    right = predicted.argmax(-1) == labels
    return {names[group]: float(right[groups == group].mean()) for group in np.unique(groups)}
