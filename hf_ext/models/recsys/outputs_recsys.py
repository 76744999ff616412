"""What the models give, and what they know of histories before there are candidates."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class SequentialRecommenderModelOutput(ModelOutput):
    """Output of `SequentialRecommenderModel`.

    Args:
        mediator: what a history becomes, `[B, D]`; of `"deepfm"` `[B, 2 D]`; of `"din"` `[B, C, D]` with candidates,
            else None.
        hidden_states_all: of `"sasrec"` and `"gru"` the mediator after every item, `[B, L, D]`; else None.
    """

    mediator: Tensor | None = None
    hidden_states_all: Tensor | None = None


@dataclass
class SequentialRecommenderOutput(ModelOutput):
    """Output of `SequentialRecommenderForNextItem`.

    Args:
        loss: scalar, with labels.
        logits: `[B, C]` of the candidates, or `[B, num_items]`, where column j is row j + 1; None in training mode
            with labels at every position.
        mediator: see `SequentialRecommenderModelOutput`.
        direct_logits: the part of the logits that comes by the direct path; None without one.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mediator: Tensor | None = None
    direct_logits: Tensor | None = None


class EncodedHistory(NamedTuple):
    """Histories of a batch, of at most `max_length`, before there are candidates.

    Args:
        input_ids: `[B, L]`.
        mask: where there is an item, `[B, L]`.
        seen: where there is one that the mediator is made of, `[B, L]`.
        embedded: `[B, L, D]`, of `"din"` alone.
        mediator: `[B, D]` or `[B, 2 D]`; None of `"din"`.
        states: `[B, L, D]` of causal encoders, zeros at padding; None where the newest alone was asked for.
        direct: `[B, R]` for the direct path; None without one.
    """

    input_ids: Tensor
    mask: Tensor
    seen: Tensor
    embedded: Tensor | None = None
    mediator: Tensor | None = None
    states: Tensor | None = None
    direct: Tensor | None = None
