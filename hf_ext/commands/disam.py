"""`hf-ext train disam` and `hf-ext demo disam`."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hf_ext._runs import group_accuracies, logits
from hf_ext.commands.demo import DemoRun, Scored, classifier_example, run_demo
from hf_ext.commands.loading import accuracy
from hf_ext.commands.training import train_method
from hf_ext.data import load
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


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Fine-tune a small ViT on three domains of digits and test it on the fourth, with DISAM, SAM and neither.

    Raises:
        ValueError: fewer than one seed or step.
    """
    run_demo(
        "disam",
        out,
        seeds=seeds,
        steps=steps,
        text=f"[bold]DISAM[/] on {DATASET}: a small ViT that knows plain digits learns those that are turned and "
        f"inverted too; those with noise it sees in the test only; {seeds} seeds.",
        systems=_systems,
        trainings=1 + len(SYSTEMS),
        shown=SHOWN,
        title="accuracy on the unseen domain",
        card={
            "dataset": f"scikit-learn {DATASET}",
            "dataset_description": (
                f"Accuracy on test images of the domain {UNSEEN!r}, which training has not seen, after {steps} "
                "updates of AdamW on the other three; below, on each domain."
            ),
            "example": classifier_example("digits-domains", ".shuffle(seed=0)[:400]"),
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    data = load(DATASET, seed=run.seed)
    base = run.pretrained_vit(data)
    unseen = data["train"].features["domain_ids"].str2int(UNSEEN)
    seen = data["train"].select(np.flatnonzero(np.asarray(data["train"]["domain_ids"][:]) != unseen))
    for name, options in SYSTEMS.items():
        trainer = DISAMTrainer(
            model=copy.deepcopy(base),
            args=run.arguments(DISAMConfig, 2e-3, **options),
            train_dataset=seen,
            eval_dataset=data["test"],
            compute_metrics=accuracy,
        )
        run.train(trainer, name)
        yield name, _accuracies(trainer, data["test"]), trainer


def _accuracies(trainer: DISAMTrainer, test: Any) -> dict[str, float]:
    """Accuracy on the unseen domain, under "", and on every domain."""
    plain, names = test.with_format("numpy"), test.features["domain_ids"].names
    by_domain = group_accuracies(logits(trainer, test), plain["labels"][:], plain["domain_ids"][:], names)
    return {"": by_domain[UNSEEN], **by_domain}
