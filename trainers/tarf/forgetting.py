"""What is minimised on the data to forget, and what that needs of arguments and data."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from hf_ext.functional import npo_loss, per_sample_losses
from hf_ext.functional.losses import IGNORED_LABEL
from hf_ext.trainers.arguments import refuse_packing

# ------------------------------------------------------------------------------------------------ forget losses
#: what is minimised on the data to forget: of the losses per sample, the original model's, and the supervised tokens
ForgetLoss = Callable[[Tensor, Tensor | None, Tensor], Tensor]


def ascent(losses: Tensor, original: Tensor | None, lengths: Tensor) -> Tensor:
    """The paper's: minus the loss."""
    return -losses


class NPO:
    """Negative preference optimisation, see `hf_ext.functional.npo_loss`; needs the original model's losses."""

    needs_original = True

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = beta

    def __call__(self, losses: Tensor, original: Tensor | None, lengths: Tensor) -> Tensor:
        assert original is not None
        # of whole sequences, not per token
        return npo_loss(losses * lengths, original * lengths, beta=self.beta)


class ForgetValues(NamedTuple):
    """What is minimised on forget rows, `[B]`, and scalars to log: the loss there, and diagnostics."""

    values: Tensor
    terms: dict[str, Tensor]
    diagnostics: dict[str, Tensor]


class ForgetTerm:
    """What is minimised on forget rows, one value each, as the arguments say.

    Args:
        args: with TARF's arguments.
        own_loss: of the user's.
        num_rows: how many rows there are to forget.
        shifted: whether position i predicts label i + 1.
    """

    def __init__(self, args: Any, own_loss: ForgetLoss | None = None, *, num_rows: int, shifted: bool) -> None:
        self.args, self.num_rows, self.shifted = args, num_rows, shifted
        self.loss = own_loss or (NPO(args.tarf_npo_beta) if args.tarf_forget_loss == "npo" else ascent)
        self.needs_original = bool(getattr(self.loss, "needs_original", False))

    def _cap(self, logits: Tensor, labels: Tensor) -> float | None:
        """Largest loss that is ascended on: the paper has none, and its ascent is without bounds."""
        if self.args.tarf_max_forget_loss is not None or self.args.tarf_method != "tarf" or self.loss is not ascent:
            cap: float | None = self.args.tarf_max_forget_loss
            return cap
        chance = loss_of_guessing(logits, labels)
        return None if chance is None else 2 * chance

    def __call__(self, logits: Tensor, labels: Tensor, rows: Tensor, original: Tensor | None = None) -> ForgetValues:
        """The values, `[B]`, and what is to be logged of them.

        Args:
            logits, labels: as `per_sample_losses` takes them.
            rows: where in the data to forget the samples stand, `[B]`.
            original: the original model's losses of all rows there, if they are needed.
        """
        losses = per_sample_losses(logits, labels, shift_labels=self.shifted)
        terms = {"forget_loss": losses.mean()}
        if self.args.tarf_method == "random_labels":
            size = {"num_labels": logits.shape[-1], "num_rows": self.num_rows}
            drawn = random_labels(labels, rows, seed=self.args.seed, **size)
            return ForgetValues(per_sample_losses(logits, drawn), terms, {})
        before = None if original is None else original.to(rows.device)[rows]
        values = self.loss(losses, before, lengths(labels, shifted=self.shifted))
        cap = self._cap(logits, labels)
        if cap is not None:
            within = losses.detach() <= cap
            values = torch.where(within, values, 0.0)
            return ForgetValues(values, terms, {"capped_fraction": 1 - within.float().mean()})
        return ForgetValues(values, terms, {})


def loss_of_guessing(logits: Tensor, labels: Tensor) -> float | None:
    """The loss of a model that takes all classes for equally likely: log C, of several labels log 2; None of numbers.

    Args:
        logits, labels: as `per_sample_losses` takes them.
    """
    if not labels.is_floating_point():
        return math.log(logits.shape[-1])
    return math.log(2) if logits.ndim == 2 and logits.shape[1] > 1 and labels.shape == logits.shape else None


def lengths(labels: Tensor, *, shifted: bool) -> Tensor:
    """Supervised tokens of every sample, `[B]`; 1 if a sample has one label."""
    if labels.ndim == 1 or labels.is_floating_point():
        return torch.ones(len(labels), device=labels.device)
    return (labels[:, 1:] if shifted else labels).ne(IGNORED_LABEL).sum(dim=1)


def random_labels(labels: Tensor, rows: Tensor, *, num_labels: int, num_rows: int, seed: int) -> Tensor:
    """Labels other than these, drawn by `seed` once for every row of the data.

    Raises:
        ValueError: labels that are not one class per sample.
    """
    if labels.ndim != 1 or labels.is_floating_point() or num_labels < 2:
        raise ValueError(
            f"tarf_method: found 'random_labels' with {labels.dtype} labels of shape {tuple(labels.shape)} and "
            f"{num_labels} classes, allowed are several classes, one per sample"
        )
    shifts = torch.randint(1, num_labels, (num_rows,), generator=torch.Generator().manual_seed(seed))
    return (labels + shifts.to(rows.device)[rows]) % num_labels


# ------------------------------------------------------------------------------------------------ refusals
def check_arguments(args: Any, *, own_loss: bool) -> None:
    """Refuse what leaves no plain loss for every sample."""
    refuse_packing(args, "samples are forgotten one by one")
    if own_loss:
        raise ValueError(
            "label_smoothing_factor, compute_loss_func: found one of them, allowed is neither: forgetting needs the "
            "plain loss of every sample"
        )


def check_batch_size(args: Any, num_rows: int) -> None:
    """Refuse batches of more forget rows than there are, unless the remaining rows' batches are as large.

    And, as accelerate does, batches that are to be split into parts that are not equal.
    """
    most, found = max(num_rows, args.train_batch_size), args.tarf_forget_batch_size
    if found is not None and found > most:
        raise ValueError(
            f"tarf_forget_batch_size: found {found} with {num_rows} rows to forget, allowed are 1 to {most}"
        )
    if found is not None and args.accelerator_config.split_batches and found % args.world_size:
        raise ValueError(
            f"tarf_forget_batch_size: found {found} with split_batches=True, allowed are multiples of "
            f"{args.world_size}, the number of processes that share it"
        )


def check_data(remaining: Any, forget: Any, identify: Any, selection: str, inputs: Sequence[str]) -> None:
    """Refuse data that cannot work.

    Args:
        inputs: columns without which the model can do nothing.

    Raises:
        ValueError: nothing to forget, data to forget that lack an input which the remaining data have, or remaining
            data without a length where their rows are counted.
    """
    if forget is None or not hasattr(forget, "__len__") or not len(forget):
        found = "none" if forget is None else "no rows" if hasattr(forget, "__len__") else type(forget).__name__
        raise ValueError(
            f"forget_dataset: found {found}, allowed are a data set with a length and rows, indices of rows of "
            "train_dataset, or tarf_forget_column"
        )
    columns = [getattr(data, "column_names", None) or () for data in (remaining, forget)]
    if columns[1] and (missing := [name for name in inputs if name in columns[0] and name not in columns[1]]):
        raise ValueError(
            f"forget_dataset: found no {', '.join(missing)}, allowed are rows prepared as those of train_dataset; a "
            "Trainer that prepares its data itself (SFTTrainer) does so if they are given as rows of it"
        )
    if selection == "none":
        return
    if isinstance(remaining, IterableDataset) or not hasattr(remaining, "__len__"):
        raise ValueError(
            f"train_dataset: found a {type(remaining).__name__} with tarf_selection={selection!r}, allowed are data "
            "sets with a length, whose rows' losses are kept by their index; or tarf_selection='none'"
        )
    if identify is not None and len(identify) != len(remaining):
        raise ValueError(
            f"identify_dataset: found {len(identify)} rows, allowed are the {len(remaining)} remaining rows, in the "
            "same order"
        )
