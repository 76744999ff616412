"""Configuration of sequential recommenders."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .portable import Number, as_number

#: what a history becomes before candidates are scored, in `NAME_recsys.py`
ARCHITECTURES = ("sasrec", "gru", "din", "deepfm")

_CHOICES = {"architecture": ARCHITECTURES, "loss": ("softmax", "bce"), "hidden_act": (None, *ACT2FN)}
_COUNT: dict[str, Any] = {"at_least": 1, "integer": True}
_NON_NEGATIVE: dict[str, Any] = {"at_least": 0}
#: bounds of numbers, as `as_number` takes them
_NUMBERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("num_items", "hidden_size", "max_length", "intermediate_size", "mediator_length"), _COUNT),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), _COUNT),
    **dict.fromkeys(("dropout", "attention_dropout", "direct_loss_weight"), _NON_NEGATIVE),
    "direct_rank": {"at_least": 0, "integer": True},
    "layer_norm_eps": {"above": 0},
    "initializer_range": {"above": 0},
}
#: of the architecture's inner layers by hidden unit, where no `intermediate_size` is given
_WIDENING = {"sasrec": 4, "gru": 2, "din": 2, "deepfm": 2}


@strict
class SequentialRecommenderConfig(PreTrainedConfig):
    r"""Configuration of a model that recommends the next item of a history of items.

    Items are rows 1 to `num_items` of its tables; row 0 is padding.

    Args:
        architecture (`str`, *optional*, defaults to `"sasrec"`):
            `"sasrec"`, causal self-attention; `"gru"`, a recurrent network; `"din"`, attention of every candidate to
            the history; `"deepfm"`, a factorisation machine beside a multi-layer perceptron.
        num_items (`int`, *optional*, defaults to 1):
            Number of items.
        hidden_size (`int`, *optional*, defaults to 32):
            Width of item embeddings.
        max_length (`int`, *optional*, defaults to 50):
            Length of the history that the model sees: of longer ones the newest items.
        num_hidden_layers (`int`, *optional*, defaults to 2):
            Number of layers of attention, of the GRU, or of hidden layers of the perceptron.
        num_attention_heads (`int`, *optional*, defaults to 2):
            Number of attention heads of `"sasrec"`.
        intermediate_size (`int`, *optional*):
            Width of inner layers: the feed-forward layer of `"sasrec"` (by default 4 times `hidden_size`), the GRU's
            state and the perceptron's hidden layers (by default twice).
        hidden_act (`str`, *optional*):
            Activation of these layers and of DIN's attention; by default `"gelu"` of `"sasrec"` and `"relu"` of the
            others; a GRU has its own.
        dropout (`float`, *optional*, defaults to 0.1):
            Probability of dropout.
        attention_dropout (`float`, *optional*):
            That of attention weights of `"sasrec"`; by default `dropout`.
        layer_norm_eps (`float`, *optional*, defaults to 1e-12):
            Epsilon of layer norms of `"sasrec"`.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of item and position embeddings and of the linear layers of `"sasrec"` at the start.
        din_normalise (`bool`, *optional*, defaults to `True`):
            Whether DIN's attention weights are a softmax over the history; the original's are not normalised.
        direct_rank (`int`, *optional*, defaults to 0):
            Rank of a direct path from the history to the logits, past the mediator; none by default.
        mediator_length (`int`, *optional*):
            How many of these the mediator is made of, the newest; by default all. A direct path sees all of them.
        direct_loss_weight (`float`, *optional*, defaults to 0.5):
            With a direct path, weight of the loss of the logits without it.
        loss (`str`, *optional*, defaults to `"softmax"`):
            `"softmax"`, cross-entropy over the candidates, or `"bce"`, binary cross-entropy of each.
        pad_token_id (`int`, *optional*, defaults to 0):
            Row of padding, always 0.

    Raises:
        ValueError: a value that is not allowed.
    """

    model_type = "sequential_recommender"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["mediator", "direct_logits"]

    architecture: str = "sasrec"
    num_items: Number = 1
    hidden_size: Number = 32
    max_length: Number = 50
    num_hidden_layers: Number = 2
    num_attention_heads: Number = 2
    intermediate_size: Number | None = None
    hidden_act: str | None = None
    dropout: Number = 0.1
    attention_dropout: Number | None = None
    layer_norm_eps: Number = 1e-12
    initializer_range: Number = 0.02
    din_normalise: bool = True
    direct_rank: Number = 0
    mediator_length: Number | None = None
    direct_loss_weight: Number = 0.5
    loss: str = "softmax"
    pad_token_id: Number = 0

    def __post_init__(self, **kwargs: Any) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, allowed are {', '.join(map(str, allowed))}")
        for name, bounds in _NUMBERS.items():
            if (value := getattr(self, name)) is not None:
                setattr(self, name, as_number(value, name, **bounds))
        for name in ("dropout", "attention_dropout"):
            if (getattr(self, name) or 0) >= 1:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, allowed are numbers in [0, 1)")
        if self.pad_token_id != 0:
            raise ValueError(f"pad_token_id: found {self.pad_token_id!r}, allowed is 0: items start at 1")
        if self.architecture == "sasrec" and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: found {self.num_attention_heads} with hidden_size={self.hidden_size}, allowed "
                "are its divisors"
            )
        super().__post_init__(**kwargs)

    @property
    def inner_size(self) -> int:
        """`intermediate_size`, or the architecture's own."""
        return int(self.intermediate_size or _WIDENING[self.architecture] * self.hidden_size)

    @property
    def activation(self) -> str:
        """`hidden_act`, or the architecture's own."""
        return str(self.hidden_act or ("gelu" if self.architecture == "sasrec" else "relu"))


__all__ = ["SequentialRecommenderConfig"]
