"""Arguments of TARF and of its baselines."""

from dataclasses import dataclass
from typing import Annotated, Literal

from hf_ext._arguments import Bounds, Count, NonNegative, Positive, Share
from hf_ext.trainers.arguments import MethodArguments, option


@dataclass
class TARFArguments(MethodArguments):
    """Arguments of `TARFMixin`, to be mixed with any TrainingArguments. T is `num_train_epochs`."""

    tarf_method: Literal["tarf", "ga", "ft", "random_labels", "ga_ft"] = option(
        "tarf",
        "'tarf', or a baseline: 'ga', gradient ascent on the data to forget; 'ft', fine-tuning on the remaining data; "
        "'random_labels'; 'ga_ft', ascent with constant weight tarf_k together with fine-tuning.",
    )
    tarf_k: NonNegative = option(
        0.05, "Strength k of the ascent; its weight starts at k (T - t0) / T. T is num_train_epochs."
    )
    tarf_t0: NonNegative | None = option(None, "Epochs without ascent at the end; by default 0.7 T.")
    tarf_t1: NonNegative | None = option(
        None,
        "Epoch at which training on the remaining data starts, and what to leave out of them is identified; by "
        "default 1, or 0 where nothing is left out (tarf_selection='none').",
    )
    tarf_schedule: Literal["annealed", "constant"] = option(
        "annealed", "Weight of the ascent until T - t0: 'annealed', falling to zero, or 'constant'."
    )
    tarf_anneal_by: Literal["epoch", "step"] = option(
        "epoch", "Whether time t moves with every 'epoch' or with every update ('step')."
    )
    tarf_selection: Literal["none", "groups", "samples"] = option(
        "none",
        "What is left out of the remaining data, where a part of what is to be forgotten is hidden in them: whole "
        "'groups', single 'samples', or 'none'.",
    )
    tarf_gravity: Literal["absolute", "relative"] = option(
        "absolute",
        "How far the ascent carries a sample along: the 'absolute' change of its loss, or 'relative' to the mean of "
        "its group's losses before, which is steadier where groups are fitted unequally well.",
    )
    tarf_top_fraction: Share = option(0.1, "Share of groups or samples that is left out, those of largest gravity.")
    tarf_n_hidden_groups: Annotated[int, Bounds(at_least=0)] | None = option(
        None, "How many groups are left out, if that is known; by default tarf_top_fraction decides."
    )
    tarf_beta: Annotated[float, Bounds(above=0, infinite=True)] | None = option(
        None, "Gravity from which on groups or samples are left out; by default tarf_top_fraction decides."
    )
    tarf_group_column: str | None = option(
        None, "Data set column of integers that makes the groups; by default the labels do."
    )
    tarf_forget_column: str | None = option(
        None, "Column of train_dataset that says which rows are to be forgotten; by default forget_dataset says so."
    )
    tarf_forget_value: list[str] | None = option(
        None,
        "Values of tarf_forget_column (names of classes, or their ids) that are to be forgotten; by default the "
        "column says so itself, by True or 1.",
    )
    tarf_forget_batch_size: Count | None = option(
        None,
        "Forget rows per micro-batch and process (with split_batches of all processes); by default as many as "
        "remaining rows.",
    )
    tarf_max_forget_loss: Annotated[float, Bounds(above=0, infinite=True)] | None = option(
        None,
        "Samples with a larger loss are not ascended on any more; 'inf' is no cap. By default, for the ascent of "
        "tarf_method='tarf', twice the loss of guessing, the logarithm of the number of classes.",
    )
    tarf_forget_loss: Literal["ascent", "npo"] = option(
        "ascent", "What is minimised on the data to forget: 'ascent', minus the loss; 'npo', which is bounded."
    )
    tarf_npo_beta: Positive = option(0.1, "Beta of negative preference optimisation (tarf_forget_loss='npo').")
    tarf_saliency: Share | None = option(
        None,
        "Share of the weights that may change, those with the largest gradients on the data to forget; by default all "
        "may. SalUn is tarf_method='random_labels' with 0.5.",
    )

    def check_options(self) -> None:
        super().check_options()
        if self.tarf_forget_value is not None and self.tarf_forget_column is None:
            raise ValueError("tarf_forget_column: found none with tarf_forget_value, allowed is the column's name")
