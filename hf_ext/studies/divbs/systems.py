"""Models of DivBS's studies, and the Trainer of every system: all are `DivBSTrainer` with other options."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as MapDataset
from transformers import ResNetForImageClassification, Trainer

from hf_ext import _small_models
from hf_ext._runs import arguments, logits, quiet
from hf_ext.studies.divbs.data import Part
from hf_ext.trainers import DivBSConfig, DivBSTrainer

#: options of DivBSConfig by the name of a way to choose
STRATEGIES: dict[str, dict[str, str]] = {
    "uniform": {"divbs_strategy": "uniform"},
    "loss": {"divbs_strategy": "loss"},
    "grad norm": {"divbs_strategy": "grad_norm"},
    "DivBS": {"divbs_strategy": "divbs"},
    "DivBS, drawn": {"divbs_strategy": "divbs", "divbs_draw": "sample"},
}


class MarkedTrainer(DivBSTrainer):
    """Counts the rows it trains on, and those of them that are marked."""

    trained, marked = 0, 0

    @property
    def own_columns(self) -> tuple[str, ...]:
        return (*super().own_columns, "marked")

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        marks = self.batch_columns["marked"]
        self.trained, self.marked = self.trained + len(marks), self.marked + int(marks.sum())
        return loss


def make_trainer(
    model: nn.Module,
    rows: MapDataset[dict[str, Tensor]],
    options: Mapping[str, Any],
    *,
    candidates: int,
    steps: int,
    learning_rate: float,
    seed: int,
    **more: Any,
) -> MarkedTrainer:
    """The Trainer of a system.

    Args:
        model, rows: what is trained, and on what (with the column `marked`).
        options: of the system: the `share` of the candidates that is trained on, and options of DivBSConfig.
        candidates: rows of which an update keeps that share.
        steps, learning_rate, seed: of the run.
        more: arguments of DivBSConfig and of the Trainer (`callbacks`).
    """
    own = dict(options)
    share = own.pop("share")
    callbacks = more.pop("callbacks", None)
    args = arguments(
        DivBSConfig,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        divbs_ratio=share,
        per_device_train_batch_size=round(candidates * share),
        dataloader_drop_last=True,  # every update has as many rows
        label_names=["labels"],
        **own,
        **more,
    )
    trainer = quiet(MarkedTrainer(model=model, args=args, train_dataset=rows, callbacks=callbacks))
    assert isinstance(trainer, MarkedTrainer)
    return trainer


def costs(trainer: MarkedTrainer, candidates: int) -> dict[str, float]:
    """What the training took: thousands of rows passed forward and backward, and the work of it, in units of updates
    on all candidates, if a pass backward takes twice as long as one forward."""
    offered = candidates * trainer.state.global_step
    scored = trainer.args.divbs_ratio < 1 and trainer.args.divbs_strategy != "uniform"
    forward = trainer.trained + offered * scored
    return {
        "rows forward, thousands": forward / 1000,
        "rows backward, thousands": trainer.trained / 1000,
        "work (full batch: 1)": (forward + 2 * trainer.trained) / (3 * offered),
    }


def accuracy(trainer: Trainer, part: Part) -> float:
    """Share of the rows that are classified correctly."""
    return float((logits(trainer, part.rows()).argmax(-1) == part.labels.numpy()).mean())


# ------------------------------------------------------------------------------------------------ models
class Perceptron(nn.Module):
    """Two hidden layers on the pixels."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.classifier = nn.Linear(64, classes)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(self.body(pixel_values))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def small_model(part: Part, seed: int) -> nn.Module:
    """A perceptron for one channel (digits), a ResNet of three blocks for pictures."""
    torch.manual_seed(seed)
    classes, channels = int(part.labels.max()) + 1, part.pixel_values.shape[1]
    if channels == 1:
        return Perceptron(part.pixel_values[0].numel(), classes)
    return ResNetForImageClassification(_small_models.resnet(channels=channels, num_labels=classes))
