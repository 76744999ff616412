"""`hf-ext train divbs` and `hf-ext demo divbs`."""

from collections.abc import Iterator, Sequence
from typing import Any

from datasets import concatenate_datasets

from hf_ext._runs import accuracy_on
from hf_ext.commands.demo import DemoRun, Scored, classifier_example, run_demo
from hf_ext.commands.loading import accuracy
from hf_ext.commands.training import train_method
from hf_ext.data import load
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
DATASET, ROWS, CANDIDATES = "digits", 16, 160
SHOWN = "DivBS"
SYSTEMS: dict[str, dict[str, Any]] = {
    f"all {CANDIDATES} candidates": {"divbs_ratio": 1.0, "per_device_train_batch_size": CANDIDATES},
    f"uniform, {ROWS} of them": {"divbs_strategy": "uniform"},
    f"largest losses, {ROWS} of them": {"divbs_strategy": "loss"},
    SHOWN: {},
}


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Train a small ViT on digits with a tenth of every batch, chosen in several ways, and with all of it.

    Raises:
        ValueError: fewer than one seed or step.
    """
    run_demo(
        "divbs",
        out,
        seeds=seeds,
        steps=steps,
        text=f"[bold]DivBS[/] on {DATASET}: a small ViT learns from {ROWS} of every {CANDIDATES} candidates, or "
        f"from all of them. Compared is the accuracy after as many updates; {seeds} seeds.",
        found="What the study found: on these data a tenth that DivBS chooses is better than a tenth drawn at "
        "random or that of the largest losses (shown), and no worse than all candidates; with wrong labels it is "
        "worse.",
        systems=_systems,
        trainings=len(SYSTEMS),
        shown=SHOWN,
        title="accuracy",
        card={
            "dataset": f"scikit-learn {DATASET}",
            "dataset_description": (
                f"Accuracy on test images after {steps} steps of AdamW on {ROWS} of every {CANDIDATES} candidates; "
                "training on all of them takes ten times the backward passes."
            ),
            "example": classifier_example(DATASET),
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    data = load(DATASET, seed=run.seed)
    rows: Any = list(concatenate_datasets([data["pretrain"], data["train"]]))  # reading candidates costs time too
    for name, options in SYSTEMS.items():
        sizes = {"per_device_train_batch_size": ROWS, "divbs_ratio": ROWS / CANDIDATES, **options}
        trainer = DivBSTrainer(
            model=run.vit(data["train"].features["labels"].names),
            args=run.arguments(DivBSConfig, 2e-3, **sizes),
            train_dataset=rows,
            eval_dataset=data["test"],
            compute_metrics=accuracy,
        )
        run.train(trainer, name)
        yield name, {"": accuracy_on(trainer, data["test"])}, trainer
