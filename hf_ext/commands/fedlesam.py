"""`hf-ext train fedlesam` and `hf-ext demo fedlesam`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_ext._arguments import Positive
from hf_ext.commands.federated import FederationArguments, train_federation
from hf_ext.trainers.arguments import option
from hf_ext.trainers.federated import FedLESAM, FedLESAMConfig, FedLESAMTrainer


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
        description="Clients with different data train one model: locally estimated global perturbations (FedLESAM, "
        "Fan et al. 2024), in a simulated federation.",
    )


def _strategy(clients: FedLESAMFederation, args: FedLESAMConfig, **common: Any) -> FedLESAM:
    return FedLESAM(
        fedlesam_variant=args.fedlesam_variant,
        fedlesam_source=args.fedlesam_source,
        fedlesam_global_lr=clients.global_lr,
        **common,
    )
