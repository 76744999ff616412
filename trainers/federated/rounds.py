"""A round of a federation, as a client's Trainer sees it.

Nothing here knows of Flower: `begin_round` and `end_round` can be called by any engine, or by hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_ext._arguments import NonNegative, check_value
from hf_ext._models import unwrapped
from hf_ext.trainers.federated.corrections import Correction, Proximal, add_to_gradients
from hf_ext.trainers.updates import UpdateMixin, norm_of

#: tensors by their names in the model's state dict, on the CPU
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Round:
    """What a client knows when its part of a round begins.

    Args:
        number: of the round, from 1.
        client: id of the client's partition, from 0.
        config: what the server says to all (`ConfigRecord`).
        received: the global model as it has been loaded, w_t: trainable parameters and the buffers beside them;
            copies, which training does not change.
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


class FederatedMixin(UpdateMixin):
    """A Trainer that takes part in a federation; without one it trains as the Trainer that it is mixed with.

    Once per update, when all its gradients are known and before they are clipped, the corrections of the round are
    added to them, at the weights that the optimizer steps from. FedProx's `mu (w - w_t)` is one of every such Trainer:
    it follows `proximal-mu` of the server's config, as Flower's FedProx sends it.

    Entries of the memory that are named in `committed` are worth something only together with the server's own state:
    a round begins with those of the last round whose reply the server has taken, whatever became of later ones.

    Logged per update: `proximal_norm`, the length of `w - w_t`, where it is added.

    Raises:
        ValueError: when training in a round begins, for a `model_init`; for corrections in sharded models (FSDP,
            DeepSpeed), with several GPUs in one process, and with optimizers that step during the backward pass; when
            it is resumed, for a checkpoint of another round or client.
    """

    committed: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.round: Round | None = None
        self.trained: dict[str, nn.Parameter] = {}  # parameters of the round's training; empty without any
        self._corrections: list[Correction] = []
        super().__init__(*args, **kwargs)

    # ---------------------------------------------------------------------------------------------- of the method
    def begin_round(self, round: Round) -> None:
        """Take in what is known of a round before it is trained or evaluated in. Cooperative.

        Raises:
            ValueError: the server asks for what this Trainer does not do.
        """
        proximal_weight(round)
        self.round, self.trained, self._corrections = round, {}, []

    def prepare_round(self, round: Round) -> None:
        """Called when training in a round begins, with its parameters in `trained`. Cooperative."""

    def corrections(self, round: Round) -> list[Correction]:
        """What is added to the gradients. Cooperative: `[*super().corrections(round), ...]`."""
        weight = proximal_weight(round)
        return [Proximal(weight, self.on_devices(self.tensors_of(round.received, "received")))] if weight else []

    def end_round(self) -> Contribution:
        """What this client gives and keeps, once it has trained. Cooperative."""
        return Contribution()

    def tensors_of(self, tensors: Tensors, entry: str) -> list[Tensor]:
        """Those of the trained parameters, in their order, wherever they lie.

        Args:
            tensors: by name.
            entry: what they are, for errors.

        Raises:
            ValueError: one is missing, or of another shape.
        """
        for name, param in self.trained.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != tuple(param.shape):
                what = f"no {name!r}" if found is None else f"{name!r} of shape {found}"
                raise ValueError(f"{entry}: found {what}, allowed is one of shape {tuple(param.shape)}")
        return [tensors[name].detach() for name in self.trained]

    def on_devices(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors in the order of the trained parameters, on these parameters' devices."""
        return [one.to(param.device) for one, param in zip(tensors, self.trained.values(), strict=True)]

    # ---------------------------------------------------------------------------------------------- training
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; in a round with what it adds to the gradients."""
        if self.round is not None:
            self.start_round()
        return super().train(*args, **kwargs)

    def start_round(self) -> None:
        """Make ready for the updates of the round that has begun, as `train` does."""
        round = self.round
        assert round is not None
        if getattr(self, "model_init", None) is not None:
            raise ValueError("model_init: found one, allowed is a model: training would not start at the received one")
        if (self.args.fp16_full_eval or self.args.bf16_full_eval) and not self.is_model_parallel:
            self._move_model_to_device(self.model, self.args.device)  # which Trainer puts off until it trains
        named = unwrapped(self.model).named_parameters()
        self.trained = {name: param for name, param in named if param.requires_grad}
        received = self.tensors_of(round.received, "received")
        pairs = zip(received, self.trained.values(), strict=True)
        if any(one.numel() and one.data_ptr() == param.data_ptr() for one, param in pairs):
            raise ValueError("received: found tensors of the model itself, allowed are copies")
        self.prepare_round(round)
        self._corrections = self.corrections(round)
        if self._corrections:
            self.check_whole_updates("corrections of the gradient")

    def end_update(self, model: nn.Module) -> None:
        super().end_update(model)
        if self._corrections and self.accelerator.sync_gradients:  # of a stream, the last update may go on
            self._correct_gradients()

    @torch.no_grad()
    def _correct_gradients(self) -> None:
        params = list(self.trained.values())
        scaler = self.accelerator.scaler  # the gradients are still those of the scaled loss
        scale = 1.0 if scaler is None else scaler.get_scale()
        for correction in self._corrections:
            term = correction.term(params)
            add_to_gradients(params, term, weight=correction.weight * scale)
            self.record(diagnostics={f"{correction.name}_norm": norm_of(term, self.args.device)})

    # ---------------------------------------------------------------------------------------------- checkpoints
    def _place(self) -> list[int] | None:
        return None if self.round is None else [self.round.number, self.round.client]

    def checkpoint_state(self) -> dict[str, Any]:
        return super().checkpoint_state() | ({"federated_round": self._place()} if self.round else {})

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        if (saved := state.get("federated_round")) != self._place():
            raise ValueError(
                f"resume_from_checkpoint: found a checkpoint {_in_words(saved)}, allowed is one "
                f"{_in_words(self._place())}"
            )


def proximal_weight(round: Round) -> float:
    """FedProx's mu, 0 where the server says nothing of it.

    Raises:
        ValueError: it is no number >= 0.
    """
    weight = round.config.get("proximal-mu", 0.0)
    check_value("proximal-mu", weight, NonNegative)
    return float(weight)


def _in_words(place: list[int] | None) -> str:
    return "of no federation" if place is None else f"of round {place[0]} of client {place[1]}"
