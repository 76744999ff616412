"""A fixed simplex head on long-tailed data, without a federation: what of it is the simplex, what being fixed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Trainer, TrainingArguments, ViTForImageClassification

from hf_ext import _small_models
from hf_ext._runs import arguments, logits, quiet
from hf_ext.studies.divbs.data import NEEDS, Part, check, open_parts, prepare
from hf_ext.studies.fedgela.heads import COSINE, LEARNT, RANDOM, SIMPLEX, with_head
from hf_ext.studies.study import Case, Comparison, Detail, Outcome, Run, Source, Study, System
from hf_ext.studies.training import Rows

SHORT, LONG, BATCH, FEW = 300, 1200, 32, 3  # FEW: the rarest and the most frequent classes that are told apart
RATES, TEMPERATURES = (3e-4, 1e-3, 3e-3, 1e-2), (0.02, 0.05, 0.1, 0.2)


def run(run: Run) -> Outcome:
    """Train one system on a long-tailed part of the training rows; the score is the accuracy on even test rows."""
    parts = open_parts(run.folder)
    rows, order = long_tail(parts["train"].labels.numpy(), run.case.options["factor"], run.seed)
    train = Rows.of(pixel_values=parts["train"].pixel_values[rows], labels=parts["train"].labels[rows])
    model = make_model(run.system.options["head"], run.hyper_parameters, len(order), run.seed)
    args = arguments(
        TrainingArguments,
        steps=5 if run.quick else run.case.options["steps"],
        learning_rate=run.hyper_parameters["learning_rate"],
        seed=run.seed,
        per_device_train_batch_size=BATCH,
    )
    trainer = quiet(Trainer(model, args, train_dataset=train))
    trainer.train()
    validation, test = (recalls(trainer, parts[name], len(order)) for name in ("validation", "test"))
    details = {"rare classes": test[order[-FEW:]].mean(), "frequent classes": test[order[:FEW]].mean()}
    return Outcome(validation.mean(), test.mean(), details)


def long_tail(labels: NDArray[np.int64], factor: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of which every class has fewer than the one before it, by one ratio, and the classes in this order.

    Args:
        labels: of all rows, `[N]`.
        factor: how many times as many rows the first class has as the last.
        seed: draws the order of the classes, and their rows.
    """
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(int(labels.max()) + 1)
    most = np.bincount(labels).min()
    rows = []
    for place, label in enumerate(order):
        count = max(1, round(most * factor ** (-place / (len(order) - 1))))
        rows.append(rng.permutation(np.flatnonzero(labels == label))[:count])
    return np.sort(np.concatenate(rows)), order


def make_model(head: str, hyper_parameters: Mapping[str, Any], classes: int, seed: int) -> nn.Module:
    """A small ViT with a head of this kind; all start from the same weights but for it."""
    torch.manual_seed(seed)
    model = ViTForImageClassification(_small_models.vit(num_labels=classes))
    return with_head(model, head, temperature=hyper_parameters.get("temperature"), seed=seed)


def recalls(trainer: Trainer, part: Part, classes: int) -> NDArray[np.float64]:
    """Share of every class's rows that are classified correctly, `[C]`."""
    right = logits(trainer, Rows.of(**vars(part))).argmax(-1) == part.labels.numpy()
    return np.array([right[part.labels.numpy() == label].mean() for label in range(classes)])


def _grid(*, temperatures: bool) -> dict[str, tuple[float, ...]]:
    return {"learning_rate": RATES, **({"temperature": TEMPERATURES} if temperatures else {})}


PROTOCOL = f"""
- **Claim.** A head that keeps all classes equally far apart, whatever their number of samples, does not let frequent
  classes push rare ones together (Yang et al., 2022). No federation and no class weights are part of this study.
- **Data.** Handwritten digits; of the training rows the classes keep, by one ratio from each to the next, from all of
  them down to a tenth or a fiftieth ("long-tailed"), or all ("even"). The seed draws which classes are rare.
- **Metric.** The mean of the classes' recalls on the 600 test rows, which are near even; so for the three rarest and
  the three most frequent classes alone.
- **Systems.** A small ViT with the usual linear head; with a fixed simplex; and what tells its parts from each other:
  a learnt head of cosines at a temperature (normalised features, nothing fixed), and a fixed head of random
  directions (nothing of a simplex).
- **Training.** {SHORT} updates of {BATCH} rows, AdamW, cosine schedule; "trained longer": {LONG}, since a head that is
  learnt may only be slower.
- **Hyper-parameters.** Learning rate, and where there is one the temperature, by the same metric on validation rows
  (near even, a sixth of the rows) of runs with another seed, 1000.
- **Limits.** One small data set and model; validation rows that are even flatter all systems alike.
""".strip()

LONG_TAIL = Study(
    name="fedgela-long-tail",
    title="A fixed simplex head on long-tailed data",
    question="Trained centrally on classes of unequal size: does a fixed simplex as the head help rare classes?",
    metric="mean recall of the classes",
    data={
        "digits": Source(
            "handwritten digits (scikit-learn)",
            embedded="digits",
            needs=NEEDS["digits"],
            origin="comes with scikit-learn",
        )
    },
    cases=(
        Case("even", "digits", {"factor": 1, "steps": SHORT}),
        Case("long-tailed, 10 to 1", "digits", {"factor": 10, "steps": SHORT}),
        Case("long-tailed, 50 to 1", "digits", {"factor": 50, "steps": SHORT}),
        Case("long-tailed, 10 to 1, trained longer", "digits", {"factor": 10, "steps": LONG}),
        Case("long-tailed, 50 to 1, trained longer", "digits", {"factor": 50, "steps": LONG}),
    ),
    systems=tuple(
        System(head, {"head": head}, _grid(temperatures=head != LEARNT), is_method=head == SIMPLEX)
        for head in (LEARNT, COSINE, RANDOM, SIMPLEX)
    ),
    comparisons=tuple(Comparison(SIMPLEX, baseline) for baseline in (LEARNT, COSINE, RANDOM)),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    details=(Detail("rare classes"), Detail("frequent classes")),
)
