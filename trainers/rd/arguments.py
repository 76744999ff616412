"""RD's arguments, and the weights that follow from them and the model's configuration."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

METHODS = ("rd", "kd", "cka", "student")
DECAYS = ("none", "linear")
SCOPES = ("global", "process")


@dataclass
class RDArguments:
    """Arguments of `RDMixin`, to be mixed with any TrainingArguments.

    What is None is as the model's configuration says.

    Args:
        rd_method: `"rd"`, or a baseline: the student alone (`"student"`), taught by the logits of a classifier of
            teacher features (`"kd"`), or aligned with the features as they are (`"cka"`).
        rd_alpha: weight of the reprogrammed features' own cross-entropy.
        rd_gamma: weight of the alignment.
        rd_beta: weight of the divergence between the two predictions; 1 for `"kd"` by default.
        rd_temperature: of that divergence.
        rd_detach_reprogrammed: whether the alignment moves the student only.
        rd_debiased: whether the alignment is the debiased one.
        rd_decay: whether alpha and beta fall linearly (`"linear"`), to zero at the end of training.
        rd_cka_scope: whether the alignment is over the batches of all processes (`"global"`) or over each one's own.
        rd_cache_teacher: whether the teacher's features of every image are computed once, before training. For images
            that are the same in every epoch.
    """

    rd_method: Literal["rd", "kd", "cka", "student"] = field(default="rd", metadata={"help": "rd, or a baseline."})
    rd_alpha: float | None = field(default=None, metadata={"help": "Weight of the reprogrammed cross-entropy."})
    rd_gamma: float | None = field(default=None, metadata={"help": "Weight of the alignment."})
    rd_beta: float | None = field(default=None, metadata={"help": "Weight of the divergence of predictions."})
    rd_temperature: float | None = field(default=None, metadata={"help": "Of the divergence."})
    rd_detach_reprogrammed: bool | None = field(default=None, metadata={"help": "Alignment moves the student only."})
    rd_debiased: bool | None = field(default=None, metadata={"help": "Debiased alignment."})
    rd_decay: Literal["none", "linear"] = field(default="none", metadata={"help": "How alpha and beta fall."})
    rd_cka_scope: Literal["global", "process"] = field(
        default="global", metadata={"help": "Whose batches the alignment is over."}
    )
    rd_cache_teacher: bool = field(default=False, metadata={"help": "Compute the teacher's features once."})

    def __post_init__(self) -> None:
        for name, allowed in (("rd_method", METHODS), ("rd_decay", DECAYS), ("rd_cka_scope", SCOPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, allowed are {', '.join(allowed)}")
        for name in ("rd_alpha", "rd_gamma", "rd_beta"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name}: found {value!r}, allowed are numbers >= 0")
        if self.rd_temperature is not None and not self.rd_temperature > 0:
            raise ValueError(f"rd_temperature: found {self.rd_temperature!r}, allowed are numbers > 0")
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()


class Weights(NamedTuple):
    """Arguments of `rd_losses_of_logits`."""

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


def weights_of(args: Any, config: Any) -> Weights:
    """The weights of a method: the arguments where they are given, else the model's configuration."""

    def value(name: str, default: Any) -> Any:
        given = getattr(args, f"rd_{name}")
        return default if given is None else given

    own = Weights(**{name: value(name, getattr(config, name)) for name in Weights._fields})
    without = own._replace(alpha=0.0, gamma=0.0, beta=0.0)
    return {
        "rd": own,
        "kd": without._replace(beta=value("beta", 1.0)),
        "cka": without._replace(gamma=own.gamma, detach_reprogrammed=True),
        "student": without,
    }[args.rd_method]
