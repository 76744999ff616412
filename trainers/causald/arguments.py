"""CausalD's arguments."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from hf_ext._arguments import Bounds, NonNegative, Positive, ShareOrZero
from hf_ext.trainers.arguments import MethodArguments, option

Seed = Annotated[int, Bounds(at_least=0)]
AtLeastOne = Annotated[float, Bounds(at_least=1)]
Two = Annotated[int, Bounds(at_least=2)]
Bank = Annotated[int, Bounds(at_least=1)]


@dataclass
class CausalDArguments(MethodArguments):
    """Arguments of `CausalDMixin`, to be mixed with any TrainingArguments."""

    causald_alpha: ShareOrZero = option(
        0.7, "Weight of the distillation; the next item's own loss has the rest. 0 is the student alone."
    )
    causald_temperature: Positive = option(2.0, "Temperature of both distributions in the distillation.")
    causald_front_door: Literal["ensemble", "bank"] = option(
        "ensemble",
        "'ensemble': the mean over the teachers; 'bank': over a bank of training histories, too, which take the place "
        "of the own one in a teacher's direct path.",
    )
    causald_average: Literal["probability", "logit"] = option(
        "probability", "What of the teachers is averaged: 'probability', or 'logit' (a geometric mean)."
    )
    causald_kind: Literal["softmax", "bce"] = option(
        "softmax", "The loss over candidates: 'softmax', one of them is next; 'bce', each is or is not. The model's."
    )
    causald_teacher_weights: list[float] | None = option(
        None, "Weights of the teachers, which need not add up to 1; by default all have the same."
    )
    causald_bank_size: Bank = option(32, "How many histories are in the bank.")
    causald_bank_method: Literal["users", "interactions", "kmeans"] = option(
        "users",
        "How they are drawn: 'users', one of each of so many users; 'interactions', whatever user has them (active "
        "users have more); 'kmeans', the middle one of each of so many clusters of users, which counts as its share.",
    )
    causald_bank_seed: Seed = option(0, "Seed of the bank.")
    causald_num_candidates: Two = option(
        32, "Candidates of a row: the next item, and others drawn uniformly once and for all."
    )
    causald_candidate_seed: Seed = option(0, "Seed of the candidates.")
    causald_cache_dir: str | None = option(
        None,
        "Folder of the teachers' effects, which are computed once; by default causald_effects in output_dir.",
    )
    causald_head_fraction: ShareOrZero = option(
        0.2, "Share of the most active users that evaluation counts as the head; the others are the tail."
    )
    causald_debias: Literal["none", "ips"] = option(
        "none", "'ips': in the next item's own loss a row counts the less, the more popular its item is in training."
    )
    causald_ips_power: NonNegative = option(0.5, "With 'ips': a row's weight is the item's count to minus this power.")
    causald_ips_clip: AtLeastOne = option(10.0, "With 'ips': the largest weight, in multiples of the smallest.")

    def check_options(self) -> None:
        super().check_options()
        weights = self.causald_teacher_weights
        if weights is None:
            return
        numbers = isinstance(weights, list | tuple) and all(
            isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight) and weight >= 0
            for weight in weights
        )
        if not numbers or not sum(weights):
            raise ValueError(
                f"causald_teacher_weights: found {weights!r}, allowed are numbers >= 0 that are not all zero"
            )
