"""`hf-ext train fedgela` and `hf-ext demo fedgela`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext._arguments import Bounds, Count
from hf_ext._runs import logits
from hf_ext.commands.demo import DemoRun, Scored, classifier_example, run_demo
from hf_ext.commands.federated import FederationArguments, train_federation
from hf_ext.commands.federated_demo import CLIENTS, DATASET, SETTING, DemoFederation, rounds_of
from hf_ext.data import classes_partition, load
from hf_ext.functional import etf_class_weights
from hf_ext.models import ETFClassifier, replace_classifier
from hf_ext.trainers.arguments import MethodArguments, option
from hf_ext.trainers.federated import FedGELA, FedGELAConfig, FedGELATrainer


@dataclass
class HeadArguments(MethodArguments):
    """The simplex that takes the place of the model's classifier, unless the model has one already."""

    etf_seed: Annotated[int, Bounds(at_least=0)] = option(0, "What the fixed simplex follows from.")
    etf_projection_size: Count | None = option(
        None, "Width of a learnt linear layer before the simplex, for features narrower than classes - 1."
    )

    def adapted(self, model: Any) -> nn.Module:
        """The model with a simplex for a head."""
        if any(isinstance(module, ETFClassifier) for module in model.modules()):
            return model
        return replace_classifier(model, seed=self.etf_seed, projection_size=self.etf_projection_size)


def train(argv: Sequence[str]) -> None:
    """Train a model in a federation with FedGELA, evaluate both views and leave a folder ready for the Hub."""
    train_federation(
        "fedgela",
        FedGELATrainer,
        FedGELAConfig,
        argv,
        strategy=_strategy,
        adapter=HeadArguments,
        description="Clients that lack classes train one model: a fixed simplex head scaled to each one's classes "
        "(FedGELA, Fan et al. 2023), in a simulated federation.",
    )


def _strategy(clients: FederationArguments, args: FedGELAConfig, **common: Any) -> FedGELA:
    return FedGELA(**common)


# ------------------------------------------------------------------------------------------------ demo
EACH = 2
SHOWN = "FedGELA"
METRICS = GENERIC, PERSONAL, KNOWN = ("accuracy", "personal accuracy", "own classes known")


def found() -> str:
    """What the demo itself shows of its methods, in words."""
    return (
        "What the demo shows: on a client's own digits FedGELA's view is right far more often than the global model "
        "of any system, because it knows which digits these are; asked for these alone, the others do as well. As a "
        "global model, with three seeds, the simplex without class weights is the best, FedAvg within its spread, "
        "and FedGELA behind both."
    )


def demo(out: str, *, seeds: int = 3, steps: int = 200) -> None:
    """Train a small network in a federation whose clients have two digits each, with four kinds of classifiers.

    Raises:
        ValueError: fewer than one seed or step.
    """
    scores = (
        f"Accuracy of the global model on all test images after {rounds_of(steps)} rounds: {SETTING}, of {EACH} "
        "digits each. The personal one is that on test images of a client's own digits, mean over clients: of FedGELA "
        "by the client's view, of the others by the global model; with own classes known it is that of the largest of "
        "these digits' logits alone, for every system."
    )
    run_demo(
        "fedgela",
        out,
        seeds=seeds,
        steps=steps,
        text=f"[bold]FedGELA[/] on {DATASET}: {SETTING}, of {EACH} digits a client. Compared is the global model's "
        f"accuracy on all digits, and the clients' on their own, after {rounds_of(steps)} rounds; {seeds} seeds.",
        found=found(),
        systems=_systems,
        trainings=4,
        shown=SHOWN,
        metrics=METRICS,
        title=f"accuracy after {rounds_of(steps)} rounds",
        card={
            "dataset": f"scikit-learn {DATASET}",
            "dataset_description": scores,
            "example": classifier_example(DATASET),
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    data = load(DATASET, seed=run.seed)
    divided = classes_partition(data["train"], CLIENTS, classes_per_client=EACH, column="labels", seed=run.seed)
    counts = torch.as_tensor(divided.counts(data["train"], column="labels"))
    federation = DemoFederation(run, data, divided, FedGELA)

    def with_random_head() -> nn.Module:
        model = federation.network()
        model.classifier.requires_grad_(False)
        return model

    def with_simplex() -> nn.Module:
        return replace_classifier(federation.network(), seed=0)

    systems: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
        "FedAvg": (Trainer, TrainingArguments, federation.network, {}),
        "fixed random head (FedBABU)": (Trainer, TrainingArguments, with_random_head, {}),
        "simplex head": (FedGELATrainer, FedGELAConfig, with_simplex, {"fedgela_class_weights": False}),
        SHOWN: (FedGELATrainer, FedGELAConfig, with_simplex, {}),
    }
    labels = torch.as_tensor(data["test"].with_format("numpy")["labels"][:])
    for name, (trainer_class, config_class, model, options) in systems.items():
        trainer = federation.train(name, trainer_class, config_class, model=model, **options)
        predicted = torch.as_tensor(logits(trainer, data["test"]))
        yield name, _scores(predicted, labels, counts, has_views=name == SHOWN), trainer


def _scores(predicted: Tensor, labels: Tensor, counts: Tensor, *, has_views: bool) -> dict[str, float]:
    """Accuracy on all rows, and means over clients of that on rows of the client's classes, as often as it has them.

    A client sees its own view of FedGELA, and of another system the global model; or it picks among its classes.
    """
    scores: dict[str, list[float]] = {PERSONAL: [], KNOWN: []}
    for own in counts:
        view = predicted * etf_class_weights(own) if has_views else predicted
        for name, seen in ((PERSONAL, view), (KNOWN, predicted.masked_fill(own == 0, -math.inf))):
            right = (seen.argmax(-1) == labels).double()
            by_class = [float(right[labels == label].mean()) for label in own.nonzero().flatten()]
            scores[name].append(float(torch.tensor(by_class).double() @ own[own > 0].double() / own.sum()))
    generic = float((predicted.argmax(-1) == labels).double().mean())
    return {GENERIC: generic} | {name: sum(values) / len(values) for name, values in scores.items()}
