"""What each system of a federation is: the clients' Trainer, and Flower's strategy at the server."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flwr.serverapp.strategy import FedAvg, FedProx, Strategy
from transformers import Trainer

from hf_ext.studies.fedlesam.federating import Client
from hf_ext.trainers import DISAMConfig, DISAMTrainer
from hf_ext.trainers.federated import FederatedMixin, FedLESAM, FedLESAMConfig, FedLESAMTrainer


class ProximalTrainer(FederatedMixin, Trainer):
    """A Trainer that follows FedProx's server."""


def client_of(settings: Mapping[str, Any]) -> Client:
    """The clients.

    Args:
        settings: `client`, one of "plain", "proximal", "sam" and "lesam"; of SAM and LESAM `rho`, of LESAM the
            `variant`, the `lamb` of S and D, and the `direction`.
    """
    return _CLIENTS[settings["client"]](settings)


def strategy_of(settings: Mapping[str, Any]) -> Callable[..., Strategy]:
    """The server's strategy, to be called with Flower's options."""
    if settings["client"] == "proximal":
        return partial(FedProx, proximal_mu=settings["mu"])
    if settings["client"] == "lesam":
        return partial(FedLESAM, fedlesam_variant=settings.get("variant", "base"))
    return FedAvg


def _sam(settings: Mapping[str, Any]) -> Client:
    return Client(DISAMTrainer, DISAMConfig, {"disam_rho": settings["rho"], "disam_lambda": 0.0})


def _lesam(settings: Mapping[str, Any]) -> Client:
    options = {
        "fedlesam_rho": settings.get("rho", 0.0),
        "fedlesam_variant": settings.get("variant", "base"),
        "fedlesam_lamb": settings.get("lamb", 0.1),
        "fedlesam_direction": settings.get("direction", "global"),
    }
    return Client(FedLESAMTrainer, FedLESAMConfig, options)


_CLIENTS: dict[str, Callable[[Mapping[str, Any]], Client]] = {
    "plain": lambda settings: Client(),
    "proximal": lambda settings: Client(ProximalTrainer),
    "sam": _sam,
    "lesam": _lesam,
}
