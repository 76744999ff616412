"""RD's arguments, and the coefficients of its loss that follow from them and the model's configuration."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from hf_ext._arguments import NonNegative, Positive
from hf_ext.trainers.arguments import MethodArguments, option


@dataclass
class RDArguments(MethodArguments):
    """Arguments of `RDMixin`, to be mixed with any TrainingArguments. None: as the model's configuration says."""

    rd_method: Literal["rd", "kd", "cka", "student"] = option(
        "rd",
        "'rd', or a baseline: 'kd', taught by the logits of a classifier of teacher features; 'cka', aligned with the "
        "teacher's features as they are; 'student', the student alone.",
    )
    rd_alpha: NonNegative | None = option(
        None,
        "Weight of the cross-entropy of the reprogrammed features; by default the model's (1 in a new one).",
    )
    rd_gamma: NonNegative | None = option(
        None,
        "Weight of the alignment (CKA) of student and reprogrammed features; by default the model's (1 in a new one).",
    )
    rd_beta: NonNegative | None = option(
        None,
        "Weight of the KL divergence of the student's prediction from that of the reprogrammed features; by default "
        "the model's (0 in a new one), and 1 with rd_method='kd'.",
    )
    rd_temperature: Positive | None = option(
        None,
        "Temperature of the predictions in the KL divergence; by default the model's (4 in a new one).",
    )
    rd_detach_reprogrammed: bool | None = option(
        None, "Whether the alignment moves the student only; by default the model's (False in a new one)."
    )
    rd_debiased: bool | None = option(
        None, "Whether the alignment is debiased CKA; by default the model's (False in a new one)."
    )
    rd_decay: Literal["none", "linear"] = option(
        "none", "'linear': rd_alpha and rd_beta fall to zero at the end of training; 'none': they stay."
    )
    rd_cka_scope: Literal["global", "process"] = option(
        "global", "The alignment is over the batches of all processes ('global') or each one's own ('process')."
    )
    rd_cache_teacher: bool = option(
        False,
        "Compute the teacher's features of every image once, before training; for images without random augmentation.",
    )


class Coefficients(NamedTuple):
    """Of the terms of RD's loss, and how they are computed: arguments of `rd_losses_of_logits`."""

    alpha: float
    gamma: float
    beta: float
    temperature: float
    detach_reprogrammed: bool
    debiased: bool

    @property
    def teach(self) -> bool:
        """Whether the teacher has any part in the loss."""
        return bool(self.alpha or self.gamma or self.beta)

    @property
    def train_phi(self) -> bool:
        """Whether reprogrammed features get a gradient. Those of the divergence do not."""
        return bool(self.alpha or (self.gamma and not self.detach_reprogrammed))


def coefficients_of(args: Any, config: Any) -> Coefficients:
    """The coefficients of `rd_method`: the arguments where they are given, else the model's configuration."""

    def value(name: str, default: Any) -> Any:
        argument = getattr(args, f"rd_{name}")
        return default if argument is None else argument

    own = Coefficients(**{name: value(name, getattr(config, name)) for name in Coefficients._fields})
    without = own._replace(alpha=0.0, gamma=0.0, beta=0.0)
    return {
        "rd": own,
        "kd": without._replace(beta=value("beta", 1.0)),
        "cka": without._replace(gamma=own.gamma, detach_reprogrammed=True),
        "student": without,
    }[args.rd_method]
