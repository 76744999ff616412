"""`hf-ext train fedgela` and `hf-ext demo fedgela`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from hf_ext._arguments import Bounds, Count
from hf_ext.commands.federated import FederationArguments, train_federation
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
