"""`hf-ext train disam` and `hf-ext demo disam`."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import DatasetDict
from torch import nn

from hf_ext.commands.demo import Demo, demo_arguments, over_seeds, pretrained_vit
from hf_ext.commands.loading import accuracy
from hf_ext.commands.training import train_method
from hf_ext.data import load
from hf_ext.hub_cards import Result, create_card
from hf_ext.studies.training import group_accuracies, logits
from hf_ext.trainers import DISAMConfig, DISAMTrainer


def train(argv: Sequence[str]) -> None:
    """Train all weights of a model on several domains, evaluate it per domain and leave a folder ready for the Hub."""
    train_method(
        "disam",
        DISAMTrainer,
        DISAMConfig,
        argv,
        description="For unseen domains: domain-inspired sharpness-aware minimization (DISAM, Zhang et al. 2024).",
    )


# ------------------------------------------------------------------------------------------------ demo
DATASET, UNSEEN = "digits-domains", "noisy"
SHOWN = "DISAM"
SYSTEMS: dict[str, dict[str, Any]] = {
    "plain Trainer": {"disam_rho": 0.0},
    "SAM": {"disam_lambda": 0.0},
    SHOWN: {},
}
EXAMPLE = """import hf_ext

test = hf_ext.data.load("digits-domains")["test"].shuffle(seed=0)[:400]
logits = model(pixel_values=test["pixel_values"]).logits
print((logits.argmax(-1) == test["labels"]).float().mean())
"""


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Fine-tune a small ViT on three domains of digits and test it on the fourth, with DISAM, SAM and neither.

    Raises:
        ValueError: fewer than one seed or step.
    """
    text = (
        f"[bold]DISAM[/] on {DATASET}: a small ViT that knows plain digits learns those that are turned and "
        f"inverted too; those with noise it sees in the test only; {seeds} seeds."
    )
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    with Demo(out, text, total=seeds * (1 + len(SYSTEMS)), seeds=seeds, steps=steps) as view:
        for seed in range(seeds):
            data = load(DATASET, seed=seed)
            base = pretrained_vit(data, 2 * steps, seed, view)
            view.advance()
            for name, options in SYSTEMS.items():
                trainer = _trainer(copy.deepcopy(base), data, steps, seed, options)
                view.watch(trainer, f"seed {seed}: {name}").train()
                scores[name].append(_accuracies(trainer, data["test"]))
                view.advance()
                if seed == 0 and name == SHOWN:
                    trainer.evaluate()  # so that the card names the test data
                    trainer.model.save_pretrained(view.folder)
                    facts = trainer.card_facts()
    results = [
        over_seeds(name, [run[part] for run in runs], is_method=name == SHOWN, group=part)
        for name, runs in scores.items()
        for part in runs[0]
    ]
    create_card(view.folder, run=facts, **_card_facts(results, seeds, steps))
    view.finish("accuracy on the unseen domain", results)


def _trainer(model: nn.Module, data: DatasetDict, steps: int, seed: int, options: dict[str, Any]) -> DISAMTrainer:
    unseen = data["train"].features["domain_ids"].str2int(UNSEEN)
    seen = data["train"].select(np.flatnonzero(np.asarray(data["train"]["domain_ids"][:]) != unseen))
    arguments = demo_arguments(DISAMConfig, steps, 2e-3, seed, **options)
    return DISAMTrainer(
        model=model, args=arguments, train_dataset=seen, eval_dataset=data["test"], compute_metrics=accuracy
    )


def _accuracies(trainer: DISAMTrainer, test: Any) -> dict[str, float]:
    """Accuracy on the unseen domain, under "", and on every domain."""
    plain, names = test.with_format("numpy"), test.features["domain_ids"].names
    found = group_accuracies(logits(trainer, test), plain["labels"][:], plain["domain_ids"][:], names)
    return {"": found[UNSEEN], **found}


def _card_facts(results: list[Result], seeds: int, steps: int) -> dict[str, Any]:
    return {
        "method": "disam",
        "dataset": f"scikit-learn {DATASET}",
        "dataset_description": (
            f"Accuracy on test images of the domain {UNSEEN!r}, which training has not seen, after {steps} updates of "
            "AdamW on the other three; below, on each domain."
        ),
        "results": results,
        "example": EXAMPLE,
        "license": "apache-2.0",
        "limitations": "A demonstration on small images.",
        "command": f"hf-ext demo disam --seeds {seeds} --steps {steps}",
    }
