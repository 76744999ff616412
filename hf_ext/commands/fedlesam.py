"""`hf-ext train fedlesam` and `hf-ext demo fedlesam`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hf_ext._arguments import Positive
from hf_ext._runs import accuracy_on
from hf_ext.commands.demo import DemoRun, Scored, classifier_example, run_demo
from hf_ext.commands.federated import FederationArguments, train_federation
from hf_ext.commands.federated_demo import CLIENTS, DATASET, SETTING, DemoFederation, rounds_of
from hf_ext.data import dirichlet_partition, load
from hf_ext.trainers import DISAMConfig, DISAMTrainer
from hf_ext.trainers.arguments import option
from hf_ext.trainers.federated import FedLESAM, FedLESAMConfig, FedLESAMTrainer
from hf_ext.trainers.federated.fedlesam.arguments import check_plain_steps


@dataclass
class FedLESAMFederation(FederationArguments):
    """Options of clients and server."""

    global_lr: Positive = option(1.0, "What the server multiplies the mean of the clients' updates by.")


def train(argv: Sequence[str]) -> None:
    """Train a model in a federation with FedLESAM, evaluate it and leave a folder ready for the Hub."""
    train_federation(
        "fedlesam",
        FedLESAMTrainer,
        FedLESAMConfig,
        argv,
        strategy=_strategy,
        federation=FedLESAMFederation,
        check=_check,
        description="Clients with different data train one model: locally estimated global perturbations (FedLESAM, "
        "Fan et al. 2024), in a simulated federation.",
    )


def _check(args: FedLESAMConfig) -> None:
    if args.fedlesam_variant == "S":
        check_plain_steps(args)


def _strategy(clients: FedLESAMFederation, args: FedLESAMConfig, **common: Any) -> FedLESAM:
    return FedLESAM(
        fedlesam_variant=args.fedlesam_variant,
        fedlesam_source=args.fedlesam_source,
        fedlesam_global_lr=clients.global_lr,
        **common,
    )


# ------------------------------------------------------------------------------------------------ demo
ALPHA, FEWEST = 0.1, 4
SHOWN = "FedLESAM"
SYSTEMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "FedAvg": (FedLESAMTrainer, FedLESAMConfig, {"fedlesam_rho": 0.0}),
    "FedSAM, two passes": (DISAMTrainer, DISAMConfig, {"disam_rho": 0.1, "disam_lambda": 0.0}),
    SHOWN: (FedLESAMTrainer, FedLESAMConfig, {"fedlesam_rho": 0.1}),
}


def found() -> str:
    """What the demo itself shows of its methods, in words."""
    return (
        "What the demo shows: nothing for a perturbation. Over three seeds FedLESAM has the lowest mean, and no two "
        "of the three differ by more than the larger of their spreads."
    )


def demo(out: str, *, seeds: int = 3, steps: int = 200) -> None:
    """Train a small network in a federation whose clients have different digits, with and without perturbations.

    Raises:
        ValueError: fewer than one seed or step.
    """
    run_demo(
        "fedlesam",
        out,
        seeds=seeds,
        steps=steps,
        text=f"[bold]FedLESAM[/] on {DATASET}: {SETTING}, with digits as a Dirichlet({ALPHA}) distribution divides "
        f"them. Compared is the global model's accuracy after {rounds_of(steps)} rounds; {seeds} seeds.",
        found=found(),
        systems=_systems,
        trainings=len(SYSTEMS),
        shown=SHOWN,
        title=f"accuracy of the global model after {rounds_of(steps)} rounds",
        card={
            "dataset": f"scikit-learn {DATASET}",
            "dataset_description": (
                f"Accuracy of the global model on test images after {rounds_of(steps)} rounds: {SETTING}, with digits "
                f"as a Dirichlet({ALPHA}) distribution over classes divides them. FedSAM takes two passes per update."
            ),
            "example": classifier_example(DATASET),
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    data = load(DATASET, seed=run.seed)
    divided = dirichlet_partition(data["train"], CLIENTS, alpha=ALPHA, column="labels", seed=run.seed, min_size=FEWEST)
    federation = DemoFederation(run, data, divided, FedLESAM)
    for name, (trainer_class, config_class, options) in SYSTEMS.items():
        trainer = federation.train(name, trainer_class, config_class, model=federation.network, **options)
        yield name, {"": accuracy_on(trainer, data["test"])}, trainer
