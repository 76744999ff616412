"""What each system of a federation with partly missing classes is: its head, and the clients' Trainer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flwr.serverapp.strategy import FedAvg, FedProx, Strategy
from torch import nn
from transformers import Trainer

from hf_ext.studies.fedgela.baselines import RestrictedSoftmaxMixin, freeze_head
from hf_ext.studies.fedgela.heads import with_head
from hf_ext.studies.fedlesam.data import Part, Problem
from hf_ext.studies.fedlesam.federating import Client
from hf_ext.studies.fedlesam.models import small_model
from hf_ext.studies.fedlesam.systems import ProximalTrainer
from hf_ext.trainers.federated import FedGELA, FedGELAConfig, FedGELATrainer


class FedRSTrainer(RestrictedSoftmaxMixin, Trainer):
    """A Trainer with FedRS's restricted softmax."""


def model_of(problem: Problem, settings: Mapping[str, Any], seed: int) -> nn.Module:
    """The untrained model.

    Args:
        problem: whose pictures it is for.
        settings: `head`, a kind of `with_head`, and its `temperature`; `frozen` for a usual head that is not trained.
        seed: of all weights.
    """
    model = with_head(small_model(problem, seed), settings["head"], temperature=settings.get("temperature"), seed=seed)
    return freeze_head(model) if settings.get("frozen") else model


def client_of(settings: Mapping[str, Any], classes: int) -> Client:
    """The clients.

    Args:
        settings: `client`, one of "plain", "proximal", "restricted" and "gela"; of the restricted softmax `alpha`,
            of GELA `weights`, whether classes are weighed.
        classes: their number.
    """

    def counts(rows: Part) -> dict[str, Any]:
        return {"class_counts": rows.labels.bincount(minlength=classes)}

    kind = settings["client"]
    if kind == "gela":
        return Client(FedGELATrainer, FedGELAConfig, {"fedgela_class_weights": settings["weights"]}, counts)
    if kind == "restricted":
        return Client(FedRSTrainer, further=lambda rows: {**counts(rows), "alpha": settings["alpha"]})
    return Client(ProximalTrainer if kind == "proximal" else Trainer)


def strategy_of(settings: Mapping[str, Any]) -> Callable[..., Strategy]:
    """The server's strategy, to be called with Flower's options."""
    if settings["client"] == "proximal":
        return partial(FedProx, proximal_mu=settings["mu"])
    return FedGELA if settings["client"] == "gela" else FedAvg
