"""Arguments of TARF and of its baselines."""

from dataclasses import dataclass, field
from typing import Literal

METHODS = ("tarf", "ga", "ft", "random_labels", "ga_ft")
SELECTIONS = ("groups", "samples", "none")
GRAVITIES = ("absolute", "relative")


@dataclass
class TARFArguments:
    """Arguments of `TARFMixin`, to be mixed with any TrainingArguments. T is `num_train_epochs`.

    Args:
        tarf_method: `"tarf"`, or a baseline: gradient ascent `"ga"`, fine-tuning on the remaining data `"ft"`,
            `"random_labels"`, or `"ga_ft"`, ascent with constant weight k while retaining.
        tarf_k: strength of the ascent; it starts at `k (T - t0) / T`.
        tarf_t0: epochs without ascent at the end; 0.7 T by default.
        tarf_t1: epoch at which what to leave out is identified and retaining starts.
        tarf_schedule: `"annealed"`, or `"constant"` until T - t0.
        tarf_anneal_by: time moves with every `"epoch"`, or with every update (`"step"`).
        tarf_selection: what is left out of the remaining data: whole `"groups"`, single `"samples"`, or `"none"`.
        tarf_gravity: the change of the loss, `"absolute"`, or `"relative"` to the mean of the group's losses before:
            steadier where the groups are fitted unequally well, with a t1 of few updates.
        tarf_top_fraction: share of groups or samples that are left out, those of largest gravity.
        tarf_n_hidden_groups: how many groups are left out, if that is known.
        tarf_beta: gravity from which on groups or samples are left out, instead of a share.
        tarf_group_column: column of integers that makes the groups; by default the labels.
        tarf_forget_column: column of `train_dataset` that says which rows are to be forgotten.
        tarf_forget_value: its values (or names of classes) that are; by default what counts as true.
        tarf_forget_batch_size: forget rows per micro-batch and process; by default as many as remaining rows.
        tarf_max_forget_loss: samples with a larger loss are not ascended on any more; 2 or 3 times the logarithm of
            the number of classes is sensible.
        tarf_forget_loss: `"ascent"`, or `"npo"`, negative preference optimisation, which is bounded.
        tarf_npo_beta: its temperature.
        tarf_saliency: share of the weights that may change, those with the largest gradients on the data to forget;
            by default all. SalUn is `tarf_method="random_labels"` with 0.5.
    """

    tarf_method: Literal["tarf", "ga", "ft", "random_labels", "ga_ft"] = field(
        default="tarf", metadata={"help": "tarf, or a baseline."}
    )
    tarf_k: float = field(default=0.05, metadata={"help": "Strength of the ascent."})
    tarf_t0: float | None = field(default=None, metadata={"help": "Epochs without ascent at the end; 0.7 T."})
    tarf_t1: float = field(default=1.0, metadata={"help": "Epoch at which retaining starts."})
    tarf_schedule: Literal["annealed", "constant"] = field(
        default="annealed", metadata={"help": "How the ascent's weight goes on until T - t0."}
    )
    tarf_anneal_by: Literal["epoch", "step"] = field(default="epoch", metadata={"help": "What time moves with."})
    tarf_selection: Literal["groups", "samples", "none"] = field(
        default="groups", metadata={"help": "What is left out of the remaining data."}
    )
    tarf_gravity: Literal["absolute", "relative"] = field(
        default="absolute", metadata={"help": "Change of the loss, or relative to the group's losses before."}
    )
    tarf_top_fraction: float = field(default=0.1, metadata={"help": "Share that is left out."})
    tarf_n_hidden_groups: int | None = field(default=None, metadata={"help": "Number of groups that are left out."})
    tarf_beta: float | None = field(default=None, metadata={"help": "Gravity from which on it is left out."})
    tarf_group_column: str | None = field(default=None, metadata={"help": "Column of groups; the labels."})
    tarf_forget_column: str | None = field(default=None, metadata={"help": "Column that says what to forget."})
    tarf_forget_value: list[str] | None = field(
        default=None, metadata={"help": "Its values that are to be forgotten."}
    )
    tarf_forget_batch_size: int | None = field(default=None, metadata={"help": "Forget rows per micro-batch."})
    tarf_max_forget_loss: float | None = field(default=None, metadata={"help": "Cap of the ascent, per sample."})
    tarf_forget_loss: Literal["ascent", "npo"] = field(default="ascent", metadata={"help": "What is minimised there."})
    tarf_npo_beta: float = field(default=0.1, metadata={"help": "Temperature of npo."})
    tarf_saliency: float | None = field(default=None, metadata={"help": "Share of the weights that may change."})

    def __post_init__(self) -> None:
        for name, allowed in (
            ("tarf_method", METHODS),
            ("tarf_schedule", ("annealed", "constant")),
            ("tarf_anneal_by", ("epoch", "step")),
            ("tarf_selection", SELECTIONS),
            ("tarf_gravity", GRAVITIES),
            ("tarf_forget_loss", ("ascent", "npo")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: found {getattr(self, name)!r}, allowed are {', '.join(allowed)}")
        for name, low, strict in (
            ("tarf_k", 0, False),
            ("tarf_t0", 0, False),
            ("tarf_t1", 0, False),
            ("tarf_n_hidden_groups", 0, False),
            ("tarf_forget_batch_size", 1, False),
            ("tarf_max_forget_loss", 0, True),
            ("tarf_npo_beta", 0, True),
        ):
            value = getattr(self, name)
            if value is not None and not (value > low if strict else value >= low):
                raise ValueError(f"{name}: found {value!r}, allowed are values {'>' if strict else '>='} {low}")
        for name in ("tarf_top_fraction", "tarf_saliency"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}: found {value!r}, allowed are numbers in (0, 1]")
        if self.tarf_forget_value is not None and self.tarf_forget_column is None:
            raise ValueError("tarf_forget_column: found none with tarf_forget_value, allowed is the column's name")
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()
