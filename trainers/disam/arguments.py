"""Arguments of DISAM, and what they allow of the data and the loss."""

from dataclasses import dataclass, field
from typing import Any, Literal

from hf_ext.trainers.disam.sharpness import SharpnessRule

_ALPHA = {"sam": 0.0, "gsam": 0.4, "sagm": 0.001}


@dataclass
class DISAMArguments:
    """Arguments of `DISAMMixin`, to be mixed with any TrainingArguments.

    Args:
        disam_rho: length of the perturbation; 0 is the plain Trainer.
        disam_lambda: weight of the variance of the domains' losses in the ascent; 0 is SAM, which needs no domains.
        disam_sharpness: `"sam"`; `"gsam"`, which lowers the surrogate gap too; `"sagm"`, which brings the gradients of
            both passes into line. These two keep one more gradient.
        disam_alpha: of GSAM, 0.4 by default, or SAGM, 0.001.
        disam_adaptive: measure the perturbation relative to the weights (ASAM).
        disam_domain_column: data set column of the domains, integers or names.
        disam_domain_weights: `"global"`, from the domains' losses in the whole batch of the update, which takes one
            more forward pass of all micro-batches but the last; `"running"`, from a running mean, without that.
        disam_running_decay: of that mean.
        disam_num_domains: number of domains, where the data cannot tell (streams).
        disam_sync_perturbation: one perturbation for all processes, as in one process; otherwise each has its own.
        disam_domain_sampler: `"balanced"`, as many samples of every domain in each batch.
    """

    disam_rho: float = field(default=0.05, metadata={"help": "Length of the perturbation; 0 is the plain Trainer."})
    disam_lambda: float = field(
        default=0.1, metadata={"help": "Weight of the variance of the domains' losses in the ascent; 0 is SAM."}
    )
    disam_sharpness: Literal["sam", "gsam", "sagm"] = field(
        default="sam", metadata={"help": "'sam', or what else is made of the two gradients: 'gsam', 'sagm'."}
    )
    disam_alpha: float | None = field(default=None, metadata={"help": "Of GSAM (0.4) or SAGM (0.001)."})
    disam_adaptive: bool = field(
        default=False, metadata={"help": "Measure the perturbation relative to the weights (ASAM)."}
    )
    disam_domain_column: str = field(
        default="domain_ids", metadata={"help": "Data set column of the domains, integers or names."}
    )
    disam_domain_weights: Literal["global", "running"] = field(
        default="global",
        metadata={
            "help": "'global': weights from the update's whole batch (one more forward pass of all micro-batches but "
            "the last); 'running': from a running mean of the domains' losses."
        },
    )
    disam_running_decay: float = field(default=0.9, metadata={"help": "Decay of that running mean."})
    disam_num_domains: int | None = field(
        default=None, metadata={"help": "Number of domains, where the data cannot tell (streams)."}
    )
    disam_sync_perturbation: bool = field(
        default=True, metadata={"help": "One perturbation for all processes; otherwise each has its own."}
    )
    disam_domain_sampler: Literal["random", "balanced"] = field(
        default="random", metadata={"help": "'balanced': as many samples of every domain in each batch."}
    )

    def __post_init__(self) -> None:
        for name in ("disam_rho", "disam_lambda"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, allowed are numbers >= 0")
        if not 0 <= self.disam_running_decay < 1:
            raise ValueError(f"disam_running_decay: found {self.disam_running_decay}, allowed are numbers in [0, 1)")
        if self.disam_num_domains is not None and self.disam_num_domains < 1:
            raise ValueError(f"disam_num_domains: found {self.disam_num_domains}, allowed are integers >= 1")
        if self.disam_alpha is not None and (self.disam_sharpness == "sam" or not self.disam_alpha >= 0):
            raise ValueError(
                f"disam_alpha: found {self.disam_alpha} with disam_sharpness={self.disam_sharpness!r}, allowed are "
                "numbers >= 0 with 'gsam' and 'sagm'"
            )
        choices: dict[str, tuple[str, ...]] = {
            "disam_sharpness": tuple(_ALPHA),
            "disam_domain_weights": ("global", "running"),
            "disam_domain_sampler": ("random", "balanced"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, allowed are {', '.join(map(repr, allowed))}")
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()


def sharpness_rule(args: Any) -> SharpnessRule | None:
    """What these arguments make of the two gradients; None without a perturbation."""
    if not args.disam_rho:
        return None
    alpha = _ALPHA[args.disam_sharpness] if args.disam_alpha is None else args.disam_alpha
    return SharpnessRule(args.disam_sharpness, args.disam_rho, alpha, args.disam_adaptive)


def check_data(args: Any, dataset: Any) -> None:
    """Refuse training data without the domains that the arguments need, or that the sampler cannot balance."""
    column, balanced = args.disam_domain_column, args.disam_domain_sampler == "balanced"
    columns = getattr(dataset, "column_names", None)
    needed = balanced or bool(args.disam_rho and args.disam_lambda)
    if needed and isinstance(columns, list) and column not in columns:
        raise ValueError(
            f"disam_domain_column: found no column {column!r} in train_dataset, allowed are those of integers or "
            f"names among {sorted(columns)}; disam_lambda=0 (SAM) needs none"
        )
    if balanced and not hasattr(dataset, "__len__"):
        raise ValueError("disam_domain_sampler: found 'balanced' for a stream, allowed is 'random'")
    if balanced and args.train_sampling_strategy != "random":
        raise ValueError(
            f"disam_domain_sampler: found 'balanced' with train_sampling_strategy={args.train_sampling_strategy!r}, "
            "allowed is 'random' with that"
        )


def check_sample_losses(args: Any, *, own_loss: bool) -> None:
    """Refuse what leaves no loss for every sample.

    Args:
        own_loss: whether the user's loss comes without a `per_sample_loss_func`.
    """
    for option in ("packing", "padding_free"):
        if getattr(args, option, False):
            raise ValueError(f"{option}: found True, allowed is False: a sequence that mixes samples has no domain")
    if own_loss:
        raise ValueError(
            "compute_loss_func: found one without per_sample_loss_func, allowed are both, or disam_lambda=0"
        )
