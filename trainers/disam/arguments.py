"""Arguments of DISAM, and what they allow of the data and the loss."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from hf_ext._arguments import Bounds, NonNegative
from hf_ext.data.columns import MOST_GROUPS, holds_text
from hf_ext.trainers.arguments import MethodArguments, option, refuse_packing
from hf_ext.trainers.disam.domains import can_be_asked
from hf_ext.trainers.disam.sharpness import SharpnessRule

_ALPHA = {"sam": 0.0, "gsam": 0.4, "sagm": 0.001}


@dataclass
class DISAMArguments(MethodArguments):
    """Arguments of `DISAMMixin`, to be mixed with any TrainingArguments; every field's help says what it does."""

    disam_rho: NonNegative = option(0.05, "Length of the perturbation; 0 is the plain Trainer.")
    disam_lambda: NonNegative = option(
        0.1, "Weight of the variance of the domains' losses in the ascent loss; 0 is SAM, which needs no domains."
    )
    disam_sharpness: Literal["sam", "gsam", "sagm"] = option(
        "sam",
        "'sam'; 'gsam' lowers the surrogate gap too; 'sagm' aligns the gradients of both passes. These two keep one "
        "more gradient in memory.",
    )
    disam_alpha: NonNegative | None = option(None, "Alpha of GSAM, by default 0.4, or of SAGM, by default 0.001.")
    disam_adaptive: bool = option(False, "Measure the perturbation relative to the weights (ASAM).")
    disam_every: Annotated[int, Bounds(at_least=1)] = option(
        1,
        "Updates that share a perturbation: with 4 every fourth update has a first pass, and the three after it move "
        "the weights along the last perturbation again; only with 'sam'.",
    )
    disam_domain_column: str = option("domain_ids", "Data set column of the domains, integers or names.")
    disam_domain_weights: Literal["global", "running"] = option(
        "global",
        "What the variance is computed from: 'global', the domains' losses in the whole batch of the update, at the "
        "price of one more forward pass of all micro-batches but the last; 'running', a running mean of them.",
    )
    disam_running_decay: Annotated[float, Bounds(at_least=0, below=1)] = option(
        0.9, "Decay of the running mean of the domains' losses."
    )
    disam_num_domains: Annotated[int, Bounds(at_least=1, at_most=MOST_GROUPS)] | None = option(
        None, "Number of domains; by default counted in the data, which a stream does not allow."
    )
    disam_sync_perturbation: bool = option(
        True, "One perturbation for all processes, as in a single one; otherwise each process has its own."
    )
    disam_domain_sampler: Literal["random", "balanced"] = option(
        "random", "'balanced': as many samples of every domain in each batch."
    )

    def check_options(self) -> None:
        super().check_options()
        if self.disam_alpha is not None and self.disam_sharpness == "sam":
            raise ValueError(
                f"disam_alpha: found {self.disam_alpha} with disam_sharpness='sam', allowed are numbers >= 0 with "
                "'gsam' and 'sagm'"
            )
        if self.disam_every > 1 and not (self.disam_sharpness == "sam" and self.disam_sync_perturbation):
            found = f"disam_sharpness={self.disam_sharpness!r}, disam_sync_perturbation={self.disam_sync_perturbation}"
            raise ValueError(
                f"disam_every: found {self.disam_every} with {found}, allowed is 1; above that only 'sam', whose "
                "perturbation is all it needs of the first pass, with one for all processes"
            )


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
    if needed and dataset is not None and not can_be_asked(dataset):
        _check_stream(args, dataset, balanced=balanced)
    if balanced and args.train_sampling_strategy != "random":
        raise ValueError(
            f"disam_domain_sampler: found 'balanced' with train_sampling_strategy={args.train_sampling_strategy!r}, "
            "allowed is 'random' with that"
        )


def _check_stream(args: Any, dataset: Any, *, balanced: bool) -> None:
    """Refuse at once all that data which cannot be looked through do not allow."""
    column, wrong = args.disam_domain_column, []
    named = getattr((getattr(dataset, "features", None) or {}).get(column), "names", None)
    if holds_text(dataset, column):
        wrong.append(f"{column}: found names, allowed are integers or class labels (cast_column)")
    if args.disam_num_domains is None and not named and (args.disam_rho and args.disam_lambda):
        wrong.append(f"disam_num_domains: found None and no class labels in {column!r}, allowed is their number")
    if balanced:
        wrong.append("disam_domain_sampler: found 'balanced', allowed is 'random'")
    if wrong:
        raise ValueError("; ".join([*wrong, f"that is for a {type(dataset).__name__} as train_dataset"]))


def check_sample_losses(args: Any, *, own_loss: bool) -> None:
    """Refuse what leaves no loss for every sample.

    Args:
        own_loss: whether the user's loss comes without a `per_sample_loss_func`.
    """
    refuse_packing(args, "a sequence that mixes samples has no domain")
    if own_loss:
        raise ValueError(
            "compute_loss_func: found one without per_sample_loss_func, allowed are both, or disam_lambda=0"
        )
