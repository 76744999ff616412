"""`hf-ext train tarf` and `hf-ext demo tarf`."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset, concatenate_datasets
from transformers import Trainer, TrainingArguments

from hf_ext.commands.demo import Demo, demo_arguments, demo_vit, over_seeds
from hf_ext.commands.loading import accuracy
from hf_ext.commands.training import train_method
from hf_ext.data import MismatchSplit, load, mismatch_split
from hf_ext.hub_cards import Result, create_card
from hf_ext.metrics import gap, unlearning_metrics
from hf_ext.studies.training import logits
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
GIVEN, CONCEPT = "8", "round"
TASK: Literal["target_mismatch"] = "target_mismatch"
SHOWN = "TARF"
EPOCHS = 10
#: of the unlearning methods
METHODS: dict[str, dict[str, Any]] = {
    "gradient ascent": {"tarf_method": "ga", "learning_rate": 1e-3, "num_train_epochs": 2},
    "fine-tuning": {"tarf_method": "ft"},
    "ascent and fine-tuning": {"tarf_method": "ga_ft", "tarf_k": 0.05},
    SHOWN: {"tarf_k": 0.02, "tarf_t0": 7.0, "tarf_max_forget_loss": 7.0},
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
    text = (
        f"[bold]TARF[/] on real digits: a small ViT is to forget all {CONCEPT} digits, of which only the {GIVEN} is "
        f"handed in. The aim is the model that was trained without them; {seeds} seeds."
    )
    scores: dict[str, list[dict[str, float]]] = {}
    with Demo(out, text, total=seeds * (2 + len(METHODS)), seeds=seeds, steps=steps) as view:
        for seed in range(seeds):
            data = load("digits", seed=seed)
            known = _with_shapes(concatenate_datasets([data["pretrain"], data["train"]]))
            test = _with_shapes(data["test"])
            split = mismatch_split(known, "digit", "shape", GIVEN, task=TASK)
            rows = _rows_to_judge(split, test)
            original = _trained(concatenate_datasets([split.forget, split.remaining]), steps, seed, view, "original")
            view.advance()
            retrained = unlearning_metrics(*_judge(_trained(split.retain, steps, seed, view, "retrained"), rows))
            view.advance()
            found = {"untouched": unlearning_metrics(*_judge(original, rows)), "retrained": retrained}
            for name, options in METHODS.items():
                trainer = _unlearner(copy.deepcopy(original.model), split, seed, options, split.labelled(test))
                view.watch(trainer, f"seed {seed}: {name}").train()
                found[name] = unlearning_metrics(*_judge(trainer, rows))
                view.advance()
                if (seed, name) == (0, SHOWN):
                    original.accelerator.unwrap_model(original.model).save_pretrained(view.folder / ORIGINAL)
                    trainer.evaluate()  # so that the card names the test data
                    trainer.model.save_pretrained(view.folder)
                    facts = trainer.card_facts()
            for name, metrics in found.items():
                scores.setdefault(name, []).append({**metrics, "gap": gap(metrics, retrained)})
    results = [
        over_seeds(name, [run[metric] for run in runs], is_method=name == SHOWN, metric=metric)
        for metric in METRICS
        for name, runs in scores.items()
    ]
    create_card(view.folder, run=facts, **_card_facts(results, seeds, steps))
    view.finish("percent, mean over seeds; the smaller the gap to retraining, the better", results, form=".1f")


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


def _trained(data: Dataset, steps: int, seed: int, view: Demo, name: str) -> Trainer:
    model = demo_vit(data.features["labels"].names, seed)
    args = demo_arguments(TrainingArguments, steps, 2e-3, seed, per_device_train_batch_size=64)
    trainer = view.watch(Trainer(model, args, train_dataset=data), f"seed {seed}: {name}")
    trainer.train()
    return trainer


def _unlearner(model: Any, split: MismatchSplit, seed: int, options: dict[str, Any], test: Dataset) -> TARFTrainer:
    settings: dict[str, Any] = {
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "learning_rate": 0.05,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 64,
        "logging_steps": 10,
        "tarf_n_hidden_groups": split.num_hidden_groups,
        **options,
    }
    args = demo_arguments(TARFConfig, -1, settings.pop("learning_rate"), seed, **settings)
    trainer = TARFTrainer(
        model,
        args,
        train_dataset=split.remaining,
        forget_dataset=split.forget,
        eval_dataset=test,
        compute_metrics=accuracy,
    )
    return trainer


def _card_facts(results: list[Result], seeds: int, steps: int) -> dict[str, Any]:
    return {
        "method": "tarf",
        "dataset": "scikit-learn digits",
        "dataset_description": (
            f"To be forgotten: all {CONCEPT} digits (0, 6, 8, 9); handed in: the {GIVEN}. In percent, in the labels "
            "of the ten digits: UA, accuracy on the training images of the concept; RA, on the other training images; "
            "TA, on test images outside the concept; MIA, share of the concept's training images that a confidence "
            "attack takes for never trained on; gap, mean absolute difference of the four to those of a model that "
            f"was trained without the concept for as long as the original one ({steps} steps of 64 images). "
            f"Unlearning takes {EPOCHS} epochs, gradient ascent 2. The settings of TARF and of gradient "
            "ascent were chosen after looking at such runs, those of the others were not searched for."
        ),
        "results": results,
        "example": f"import hf_ext\n{EXAMPLE}",
        "license": "apache-2.0",
        "limitations": "A demonstration on small images. The settings are not the paper's, which are not known.",
        "command": f"hf-ext demo tarf --seeds {seeds} --steps {steps}",
    }
