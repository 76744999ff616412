"""Arguments of FedGELA's clients."""

from dataclasses import dataclass
from typing import Literal

from hf_ext._arguments import Positive
from hf_ext.trainers.arguments import MethodArguments, option


@dataclass
class FedGELAArguments(MethodArguments):
    """Arguments of `FedGELAMixin`, to be mixed with any TrainingArguments; every field's help says what it does."""

    fedgela_temperature: Positive | None = option(
        None, "What logits are divided by; by default that of the model's head, or of a new feature norm."
    )
    fedgela_feature_norm: Literal["l2", "batch", "none"] | None = option(
        None,
        "What features go through before the head: 'l2', length 1; 'batch', a BatchNorm without parameters, whose "
        "statistics are the client's; 'none'. By default that of the model's head.",
    )
    fedgela_class_weights: bool = option(
        True,
        "Train with the head's vectors scaled by the client's share of each class; without, the head is fixed only.",
    )
