"""`hf-ext train divbs` and `hf-ext demo divbs`."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets

from hf_ext.commands.demo import Demo, demo_arguments, demo_vit, over_seeds
from hf_ext.commands.loading import accuracy
from hf_ext.commands.training import train_method
from hf_ext.data import load
from hf_ext.hub_cards import Result, create_card
from hf_ext.studies.training import accuracy_on
from hf_ext.trainers import DivBSConfig, DivBSTrainer


def train(argv: Sequence[str]) -> None:
    """Train all weights of a model on a part of every batch, evaluate it and leave a folder ready for the Hub."""
    train_method(
        "divbs",
        DivBSTrainer,
        DivBSConfig,
        argv,
        description="Train on the part of every batch that represents it best (DivBS, Hong et al. 2024).",
    )


# ------------------------------------------------------------------------------------------------ demo
DATASET, ROWS, RATIO = "digits", 16, 0.1
SHOWN = "DivBS"
EXAMPLE = """import hf_ext

test = hf_ext.data.load("digits")["test"][:400]
logits = model(pixel_values=test["pixel_values"]).logits
print((logits.argmax(-1) == test["labels"]).float().mean())
"""
SYSTEMS: dict[str, dict[str, Any]] = {
    f"all {round(ROWS / RATIO)} candidates": {
        "divbs_ratio": 1.0,
        "per_device_train_batch_size": round(ROWS / RATIO),
    },
    f"uniform, {ROWS} of them": {"divbs_strategy": "uniform"},
    f"largest losses, {ROWS} of them": {"divbs_strategy": "loss"},
    SHOWN: {},
}


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Train a small ViT on digits with a tenth of every batch, chosen in several ways, and with all of it.

    Raises:
        ValueError: fewer than one seed or step.
    """
    text = (
        f"[bold]DivBS[/] on {DATASET}: a small ViT learns from {ROWS} of every {round(ROWS / RATIO)} candidates, or "
        f"from all of them; {seeds} seeds."
    )
    scores: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    with Demo(out, text, total=seeds * len(SYSTEMS), seeds=seeds, steps=steps) as view:
        for seed in range(seeds):
            data = load(DATASET, seed=seed)
            names = data["train"].features["labels"].names
            rows = list(concatenate_datasets([data["pretrain"], data["train"]]))  # reading candidates costs time too
            for name, options in SYSTEMS.items():
                trainer = _trainer(demo_vit(names, seed), rows, data["test"], steps, seed, options)
                view.watch(trainer, f"seed {seed}: {name}").train()
                scores[name].append(accuracy_on(trainer, data["test"]))
                view.advance()
                if seed == 0 and name == SHOWN:
                    trainer.evaluate()  # so that the card names the test data
                    trainer.model.save_pretrained(view.folder)
                    facts = trainer.card_facts()
    results = [over_seeds(name, values, is_method=name == SHOWN) for name, values in scores.items()]
    create_card(view.folder, run=facts, **_card_facts(results, seeds, steps))
    view.finish("accuracy", results)


def _trainer(model: Any, rows: Any, test: Dataset, steps: int, seed: int, options: dict[str, Any]) -> DivBSTrainer:
    arguments = demo_arguments(
        DivBSConfig, steps, 2e-3, seed, **{"per_device_train_batch_size": ROWS, "divbs_ratio": RATIO, **options}
    )
    return DivBSTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=test, compute_metrics=accuracy)


def _card_facts(results: list[Result], seeds: int, steps: int) -> dict[str, Any]:
    return {
        "method": "divbs",
        "dataset": f"scikit-learn {DATASET}",
        "dataset_description": (
            f"Accuracy on test images after {steps} steps of AdamW on {ROWS} of every {round(ROWS / RATIO)} "
            "candidates; training on all of them takes ten times the backward passes."
        ),
        "results": results,
        "example": EXAMPLE,
        "license": "apache-2.0",
        "limitations": "A demonstration on small images.",
        "command": f"hf-ext demo divbs --seeds {seeds} --steps {steps}",
    }
