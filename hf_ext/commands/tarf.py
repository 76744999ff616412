"""`hf-ext train tarf` and `hf-ext demo tarf`."""

import copy
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, concatenate_datasets
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.utils import logging

from hf_ext.commands.loading import DataArguments, ModelArguments, accuracy, load_model_and_data
from hf_ext.commands.parsing import parse
from hf_ext.data import MismatchSplit, load, mismatch_split
from hf_ext.hub_cards import Result, create_card
from hf_ext.metrics import gap, unlearning_metrics
from hf_ext.studies.training import logits, quiet
from hf_ext.trainers import TARFConfig, TARFTrainer


def train(argv: Sequence[str]) -> None:
    """Unlearn a part of the training data, evaluate and leave a folder that is ready for the Hub.

    Raises:
        ValueError: no column that says what to forget.
    """
    types = (ModelArguments, DataArguments, TARFConfig)
    description = "Unlearn a part of a model's training data by target-aware forgetting (TARF, Zhu et al. 2026)."
    model, data, args = parse(types, argv, prog="hf-ext train tarf", description=description)
    if args.tarf_forget_column is None:
        raise ValueError("tarf_forget_column: found none, allowed is the column that says which rows to forget")
    loaded = load_model_and_data(model, data)
    args.remove_unused_columns = args.remove_unused_columns and not loaded.keeps_columns
    trainer = TARFTrainer(
        model=loaded.model,
        args=args,
        data_collator=loaded.collator,
        train_dataset=loaded.data["train"],
        eval_dataset=loaded.data["eval"],
        processing_class=loaded.processor,
        compute_metrics=accuracy,
    )
    resume: str | bool | None = args.resume_from_checkpoint
    if str(resume).lower() in ("true", "false"):
        resume = str(resume).lower() == "true"
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_metrics("eval", trainer.evaluate())
    trainer.save_metrics("forget", trainer.evaluate(trainer.forget_dataset, metric_key_prefix="eval_forgotten"))
    trainer.save_model()
    trainer.create_model_card(dataset=data.dataset)
    if args.push_to_hub:
        trainer.push_to_hub(dataset=data.dataset)


# ------------------------------------------------------------------------------------------------ demo
SHAPES = ("round", "straight", "open")
SHAPE_OF = np.array([0, 1, 2, 2, 1, 2, 0, 1, 0, 0])  # of the digits 0 to 9
GIVEN = "8"
TASKS: dict[str, str] = {
    "target_mismatch": f"labels: digits; handed in: {GIVEN}; to forget: all round digits",
    "all_matched": f"labels: digits; handed in: {GIVEN}; to forget: {GIVEN}",
    "model_mismatch": f"labels: shapes; handed in: {GIVEN}; to forget: {GIVEN}",
    "data_mismatch": f"labels: shapes; handed in: {GIVEN}; to forget: all round digits",
}
SHOWN = "TARF"
EPOCHS = 10
#: of the unlearning methods; TARF's are the same in all tasks but for what is hidden
METHODS: dict[str, dict[str, Any]] = {
    "gradient ascent": {"tarf_method": "ga", "learning_rate": 2e-4},
    "fine-tuning": {"tarf_method": "ft"},
    "ascent and fine-tuning": {"tarf_method": "ga_ft", "tarf_k": 0.05},
    SHOWN: {"tarf_k": 0.2, "tarf_t0": 6.0, "tarf_max_forget_loss": 7.0},
}
METRICS = ("UA", "RA", "TA", "MIA", "gap")


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Forget digits in four tasks, in which labels, concept and data at hand do or do not coincide.

    Raises:
        ValueError: fewer than one seed or step.
    """
    for name, value in (("seeds", seeds), ("steps", steps)):
        if value < 1:
            raise ValueError(f"--{name}: found {value}, allowed are integers >= 1")
    torch.set_num_threads(1)  # the model is too small to share out
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of one library to another
    console = Console()
    console.print(
        f"[bold]TARF[/] on real digits: a small ViT forgets the images of an {GIVEN}, or all round digits of which only "
        f"those of the {GIVEN} are handed in. The aim is the model retrained without them; {seeds} seeds."
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, list[dict[str, float]]]] = {task: {} for task in TASKS}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("all runs", total=seeds * len(TASKS) * (2 + len(METHODS)))
        for seed in range(seeds):
            data = load("digits", seed=seed)
            known = _with_shapes(concatenate_datasets([data["pretrain"], data["train"]]))
            for task in TASKS:
                split = mismatch_split(known, "digit", "shape", GIVEN, task=task)  # type: ignore[arg-type]
                rows = _rows_to_judge(split, _with_shapes(data["test"]))
                original = _trained(split, concatenate_datasets([split.forget, split.remaining]), steps, seed)
                progress.advance(bar)
                retrained = unlearning_metrics(*_judge(_trained(split, split.retain, steps, seed), rows))
                progress.advance(bar)
                found = {"untouched": unlearning_metrics(*_judge(original, rows)), "retrained": retrained}
                for name, options in METHODS.items():
                    trainer = _unlearner(copy.deepcopy(original.model), split, steps, seed, options, rows[0])
                    trainer.train()
                    found[name] = unlearning_metrics(*_judge(trainer, rows))
                    progress.advance(bar)
                    if (seed, task, name) == (0, next(iter(TASKS)), SHOWN):
                        facts = _save(folder, trainer)
                for name, metrics in found.items():
                    scores[task].setdefault(name, []).append({**metrics, "gap": gap(metrics, retrained)})
    results = _results(scores)
    create_card(folder, **(facts | _card_facts(results, seeds, steps)))
    _print_table(console, results)
    console.print(f"ready for the Hub: {folder}/ (README.md shows how to load it)")


def _with_shapes(data: Dataset) -> Dataset:
    data = data.rename_column("labels", "digit").remove_columns(["task_ids", "domain_ids"])
    shapes = SHAPE_OF[data.with_format("numpy")["digit"][:]].tolist()
    return data.add_column("shape", shapes, feature=ClassLabel(names=list(SHAPES)))


def _rows_to_judge(split: MismatchSplit, test: Dataset) -> tuple[Dataset, list[str]]:
    hidden = np.flatnonzero(split.hidden)
    outside = split.labelled(test.select(np.flatnonzero(~split.in_concept(test))))
    parts = {"forget": split.forget, "hidden": split.remaining.select(hidden), "retain": split.retain, "test": outside}
    names = [name for name, rows in parts.items() for _ in range(len(rows))]
    return concatenate_datasets([rows for rows in parts.values() if len(rows)]), names


def _judge(trainer: Trainer, rows: tuple[Dataset, list[str]]) -> tuple[Any, Any, list[str]]:
    data, parts = rows
    return logits(trainer, data), data.with_format("numpy")["labels"][:], parts


def _arguments(kind: Any, seed: int, **options: Any) -> Any:
    return kind(
        output_dir=tempfile.gettempdir(),
        lr_scheduler_type="cosine",
        per_device_train_batch_size=32,
        per_device_eval_batch_size=256,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        seed=seed,
        **options,
    )


def _trained(split: MismatchSplit, data: Dataset, steps: int, seed: int) -> Trainer:
    torch.manual_seed(seed)
    names = data.features["labels"].names
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
    args = _arguments(TrainingArguments, seed, max_steps=2 * steps, learning_rate=2e-3, logging_strategy="no")
    trainer = quiet(Trainer(ViTForImageClassification(config), args, train_dataset=data))
    trainer.train()
    return trainer


def _unlearner(
    model: Any, split: MismatchSplit, steps: int, seed: int, options: dict[str, Any], test: Dataset
) -> TARFTrainer:
    hidden = {"tarf_selection": "none", "tarf_t1": 0.0}
    if split.num_hidden_groups:
        hidden = {"tarf_n_hidden_groups": split.num_hidden_groups, "tarf_t1": 1.0}
    settings = {"learning_rate": 5e-4, "num_train_epochs": EPOCHS, "logging_steps": 10, **hidden, **options}
    args = _arguments(TARFConfig, seed, **settings)
    trainer = TARFTrainer(model, args, train_dataset=split.remaining, forget_dataset=split.forget, eval_dataset=test)
    quiet(trainer)
    return trainer
