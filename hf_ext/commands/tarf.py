"""`hf-ext train tarf` and `hf-ext demo tarf`."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset, concatenate_datasets
from transformers import Trainer, TrainingArguments

from hf_ext._models import unwrapped
from hf_ext._runs import logits
from hf_ext.commands.demo import DemoRun, Scored, run_demo
from hf_ext.commands.loading import accuracy
from hf_ext.commands.training import train_method
from hf_ext.data import MismatchSplit, load, mismatch_split
from hf_ext.metrics import gap, unlearning_metrics
from hf_ext.trainers import TARFConfig, TARFTrainer


def train(argv: Sequence[str]) -> None:
    """Unlearn a part of the training data, evaluate and leave a folder that is ready for the Hub.

    Raises:
        ValueError: no column that says what to forget.
    """
    train_method(
        "tarf",
        TARFTrainer,
        TARFConfig,
        argv,
        description="Unlearn a part of a model's training data by target-aware forgetting (TARF, Zhu et al. 2026).",
        check=_check,
        evaluated=lambda trainer: {"forgotten": trainer.forget_dataset},
    )


def _check(args: TARFConfig) -> None:
    if args.tarf_forget_column is None:
        raise ValueError("tarf_forget_column: found none, allowed is the column that says which rows to forget")


# ------------------------------------------------------------------------------------------------ demo
SHAPES = ("round", "straight", "open")
SHAPE_OF = np.array([0, 1, 2, 2, 1, 2, 0, 1, 0, 0])  # of the digits 0 to 9
HANDED_IN, CONCEPT = "8", "round"
TASK: Literal["target_mismatch"] = "target_mismatch"
SHOWN = "TARF"
EPOCHS = 10
#: TARF's are told how many digits of the concept are hidden
_HIDDEN = {"tarf_selection": "groups", "tarf_n_hidden_groups": SHAPE_OF.tolist().count(SHAPES.index(CONCEPT)) - 1}
#: options of the unlearning methods
SYSTEMS: dict[str, dict[str, Any]] = {
    "gradient ascent": {"tarf_method": "ga", "learning_rate": 1e-3, "num_train_epochs": 2},
    "fine-tuning": {"tarf_method": "ft"},
    "ascent and fine-tuning": {"tarf_method": "ga_ft", "tarf_k": 0.05},
    SHOWN: {"tarf_k": 0.02, "tarf_t0": 7.0, "tarf_max_forget_loss": 7.0, **_HIDDEN},
}
METRICS = ("UA", "RA", "TA", "MIA", "gap")
ORIGINAL = "original_model"  # a folder in that of the demonstration: what examples/tarf_digits.yaml goes on with
EXAMPLE = """import torch

digits = hf_ext.data.load("digits")["test"]
with torch.no_grad():
    predicted = model(pixel_values=digits["pixel_values"][:]).logits.argmax(-1)
for digit in range(10):
    right = predicted[digits["labels"][:] == digit] == digit
    print(digit, f"{right.float().mean():.2f}")
"""


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Forget all round digits, of which only those of one are handed in, with TARF and its baselines.

    Raises:
        ValueError: fewer than one seed or step.
    """
    run_demo(
        "tarf",
        out,
        seeds=seeds,
        steps=steps,
        text=f"[bold]TARF[/] on real digits: a small ViT is to forget all {CONCEPT} digits, of which only the "
        f"{HANDED_IN} is handed in. The aim is the model that was trained without them; {seeds} seeds.",
        systems=_systems,
        trainings=2 + len(SYSTEMS),
        shown=SHOWN,
        metrics=METRICS,
        title="percent, mean over seeds; the smaller the gap to retraining, the better",
        form=".1f",
        card={
            "dataset": "scikit-learn digits",
            "dataset_description": (
                f"To be forgotten: all {CONCEPT} digits (0, 6, 8, 9); handed in: the {HANDED_IN}. In percent, in the "
                "labels of the ten digits: UA, accuracy on the training images of the concept; RA, on the other "
                "training images; TA, on test images outside the concept; MIA, share of the concept's training "
                "images that a confidence attack takes for never trained on; gap, mean absolute difference of the "
                "four to those of a model that was trained without the concept for as long as the original one "
                f"({steps} steps of 64 images). Unlearning takes {EPOCHS} epochs, gradient ascent 2. The settings of "
                "TARF and of gradient ascent were chosen after looking at such runs, those of the others were not "
                "searched for."
            ),
            "example": f"import hf_ext\n{EXAMPLE}",
            "limitations": "A demonstration on small images. The settings are not the paper's, which are not known.",
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    data = load("digits", seed=run.seed)
    known = _with_shapes(concatenate_datasets([data["pretrain"], data["train"]]))
    test = _with_shapes(data["test"])
    split = mismatch_split(known, "digit", "shape", HANDED_IN, task=TASK)
    rows, parts = _rows_to_judge(split, test)
    labels = rows.with_format("numpy")["labels"][:]

    def metrics(trainer: Trainer) -> dict[str, float]:
        return unlearning_metrics(logits(trainer, rows), labels, parts)

    original = _trained(run, concatenate_datasets([split.forget, split.remaining]), "original")
    retrained = metrics(_trained(run, split.retain, "retrained"))
    untouched = metrics(original)
    yield "untouched", {**untouched, "gap": gap(untouched, retrained)}, None
    yield "retrained", {**retrained, "gap": 0.0}, None
    for name, options in SYSTEMS.items():
        trainer = _unlearner(run, copy.deepcopy(original.model), split, options, split.labelled(test))
        run.train(trainer, name)
        unlearned = metrics(trainer)
        yield name, {**unlearned, "gap": gap(unlearned, retrained)}, trainer
    if run.seed == 0:
        unwrapped(original.model).save_pretrained(run.folder / ORIGINAL)


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


def _trained(run: DemoRun, data: Dataset, name: str) -> Trainer:
    args = run.arguments(TrainingArguments, 2e-3, per_device_train_batch_size=64)
    trainer = Trainer(run.vit(data.features["labels"].names), args, train_dataset=data)
    run.train(trainer, name)
    return trainer


def _unlearner(run: DemoRun, model: Any, split: MismatchSplit, options: dict[str, Any], test: Dataset) -> TARFTrainer:
    settings: dict[str, Any] = {
        "steps": -1,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "learning_rate": 0.05,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 64,
        "logging_steps": 10,
        **options,
    }
    return TARFTrainer(
        model,
        run.arguments(TARFConfig, **settings),
        train_dataset=split.remaining,
        forget_dataset=split.forget,
        eval_dataset=test,
        compute_metrics=accuracy,
    )
