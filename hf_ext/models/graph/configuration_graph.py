"""Configuration of models that tell which nodes of a graph are positive."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .portable import Number, as_number

#: what a layer does with a node's neighbours
CONVOLUTIONS = ("gcn", "sage", "gat", "gcnii", "fagcn", "mlp")

_CHOICES = {"conv": CONVOLUTIONS, "edge_kind": ("sigmoid", "softmax")}
_COUNT: dict[str, Any] = {"at_least": 1, "integer": True}
_NON_NEGATIVE: dict[str, Any] = {"at_least": 0}
_POSITIVE: dict[str, Any] = {"above": 0}
_ANY: dict[str, Any] = {}
#: bounds of numbers, as `as_number` takes them
_NUMBERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("num_features", "hidden_size", "num_layers", "heads"), _COUNT),
    **dict.fromkeys(("dropout", "gcnii_alpha", "fagcn_eps"), _NON_NEGATIVE),
    **dict.fromkeys(("gcnii_theta", "class_prior"), _POSITIVE),
    **dict.fromkeys(("score_offset", "threshold"), _ANY),
}


@strict
class GraphPUConfig(PreTrainedConfig):
    r"""Configuration of a model that gives every node of a graph one logit: how positive it is.

    Args:
        conv (`str`, *optional*, defaults to `"gcn"`):
            Its layers: `"gcn"`, `"sage"` (means of neighbours), `"gat"` (attention), `"gcnii"` (many layers),
            `"fagcn"` (neighbours that may be unlike), or `"mlp"`, which sees no edges.
        num_features (`int`, *optional*, defaults to 1):
            Number of features of a node.
        hidden_size (`int`, *optional*, defaults to 16):
            Width of hidden layers.
        num_layers (`int`, *optional*, defaults to 2):
            Number of layers that pass messages, so of steps that a message travels; of `"mlp"` of linear layers.
        dropout (`float`, *optional*, defaults to 0.5):
            Probability of dropout before every layer.
        heads (`int`, *optional*, defaults to 4):
            Number of attention heads of `"gat"`, a divisor of `hidden_size`, which they share.
        gcnii_alpha (`float`, *optional*, defaults to 0.1):
            Share of a node's first state in every layer of `"gcnii"`.
        gcnii_theta (`float`, *optional*, defaults to 0.5):
            What the weight of its l-th layer's matrix is made of, `log(theta / l + 1)`.
        fagcn_eps (`float`, *optional*, defaults to 0.3):
            How much of a node's first state every layer of `"fagcn"` adds.
        edge_scorer (`bool`, *optional*, defaults to `False`):
            Whether the model has a scorer of edges, from the features of both ends.
        edge_kind (`str`, *optional*, defaults to `"sigmoid"`):
            What makes weights of its scores: `"sigmoid"`, of each for itself, or `"softmax"`, over all edges into a
            node.
        class_prior (`float`, *optional*):
            Share of positives among the unlabelled nodes, estimated in training.
        prior_interval (`list[float]`, *optional*):
            An interval of it, lower and upper end.
        score_offset (`float`, *optional*, defaults to 0.0):
            What is added to logits before probabilities are made of them.
        threshold (`float`, *optional*):
            The least logit of a node that is called positive; by default that of the probability 0.5.

    Raises:
        ValueError: a value that is not allowed.
    """

    model_type = "graph_pu"

    conv: str = "gcn"
    num_features: Number = 1
    hidden_size: Number = 16
    num_layers: Number = 2
    dropout: Number = 0.5
    heads: Number = 4
    gcnii_alpha: Number = 0.1
    gcnii_theta: Number = 0.5
    fagcn_eps: Number = 0.3
    edge_scorer: bool = False
    edge_kind: str = "sigmoid"
    class_prior: Number | None = None
    prior_interval: Any = None
    score_offset: Number = 0.0
    threshold: Number | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, allowed are {', '.join(allowed)}")
        for name, bounds in _NUMBERS.items():
            if (value := getattr(self, name)) is not None:
                setattr(self, name, as_number(value, name, **bounds))
        for name, highest in (("dropout", "[0, 1)"), ("gcnii_alpha", "[0, 1]"), ("class_prior", "(0, 1)")):
            value = getattr(self, name) or 0
            if value > 1 or (value == 1 and highest.endswith(")")):
                raise ValueError(f"{name}: found {value!r}, allowed are numbers in {highest}")
        if self.conv == "gat" and self.hidden_size % self.heads:
            raise ValueError(
                f"heads: found {self.heads} with hidden_size={self.hidden_size}, allowed are its divisors"
            )
        if self.prior_interval is not None:
            self.prior_interval = _interval(self.prior_interval)
        super().__post_init__(**kwargs)


def _interval(value: Any) -> list[float]:
    """Two shares, the lower first."""
    ends = list(value) if isinstance(value, (list, tuple)) else []
    numbers = [as_number(end, "prior_interval", at_least=0) for end in ends]
    if len(numbers) != 2 or not numbers[0] <= numbers[1] <= 1:
        raise ValueError(f"prior_interval: found {value!r}, allowed are two numbers in [0, 1], the lower first")
    return numbers


__all__ = ["GraphPUConfig"]
