"""A round of a federation, as the Trainer of one client sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hf_ext.trainers.base import MethodMixin

#: tensors by their names in the model's state dict, on the CPU
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Round:
    """What a client knows when its part of a round begins.

    Args:
        number: of the round, from 1.
        client: id of the client's partition, from 0.
        config: what the server says to all (`ConfigRecord`).
        received: the global model as it has been loaded, w_t: trainable parameters and the buffers beside them.
        broadcast: further tensors from the server, by record.
        memory: what this client has kept of earlier rounds, by entry.
    """

    number: int
    client: int
    config: Mapping[str, Any]
    received: Tensors
    broadcast: Mapping[str, Tensors] = field(default_factory=dict)
    memory: Mapping[str, Tensors] = field(default_factory=dict)


@dataclass(frozen=True)
class Contribution:
    """What a client gives besides its model when its part of a round ends.

    Args:
        memory: what it keeps for later rounds, by entry.
        sent: further tensors for the server, by record.
        metrics: numbers for the server.
    """

    memory: Mapping[str, Tensors] = field(default_factory=dict)
    sent: Mapping[str, Tensors] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


class FederatedMixin(MethodMixin):
    """A Trainer that takes part in a federation; without one it trains as the Trainer that it is mixed with.

    Entries of the memory that are named in `committed` are worth something only together with the server's own state:
    a round begins with those of the last round whose reply the server has taken, whatever became of later ones.
    """

    committed: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.round: Round | None = None
        super().__init__(*args, **kwargs)

    def begin_round(self, round: Round) -> None:
        """Take in what is known of a round before it is trained in. Cooperative.

        Raises:
            ValueError: the server asks for what this Trainer does not do.
        """
        self.round = round

    def end_round(self) -> Contribution:
        """What this client gives and keeps, once it has trained. Cooperative."""
        return Contribution()
