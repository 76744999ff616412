"""GPL's arguments."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hf_ext._arguments import Bounds, NonNegative, Positive, ShareOrZero
from hf_ext.trainers.arguments import MethodArguments, option

Seed = Annotated[int, Bounds(at_least=0)]
Whole = Annotated[int, Bounds(at_least=0)]
Proper = Annotated[float, Bounds(at_least=0, below=1)]

if TYPE_CHECKING:
    PriorOption = str | float
else:

    class PriorOption(str):
        """A word or a number; parsers of command lines know one type for an option."""


#: ways to estimate the prior
ESTIMATES = ("bbe", "en")


@dataclass
class GPLArguments(MethodArguments):
    """Arguments of `GPLMixin`, to be mixed with any TrainingArguments; every field's help says what it does."""

    gpl_objective: Literal["gpl", "rank", "nnpu", "upu", "naive"] = option(
        "gpl",
        "'gpl': ranking and learnt edges; 'rank': the prior's share of the unlabelled, those with the highest scores, "
        "count as positive; 'nnpu', 'upu': risks that need no negatives; 'naive': all unlabelled count as negative.",
    )
    gpl_prior: PriorOption = option(
        "bbe",
        "Share of positives among the unlabelled: a number between 0 and 1, or how it is estimated from held-out "
        "positives, 'bbe' (best bin; with a guide the lesser of both networks') or 'en' (Elkan and Noto).",
    )
    gpl_prior_update: Literal["once", "each_epoch"] = option(
        "once",
        "When the prior is estimated: after the warm-up ('once'), or in each epoch since, where it confirms itself.",
    )
    gpl_guide: Literal["auto", "self", "mlp"] = option(
        "auto",
        "Who ranks the unlabelled: 'self', the network; 'mlp', the mean of its logits and those of a network without "
        "edges, trained beside it; 'auto', the latter where that one finds held-out positives better after the "
        "warm-up by more than a standard error, and otherwise the network alone, without learnt edges.",
    )
    gpl_warmup_epochs: Whole = option(40, "Epochs at the beginning in which all unlabelled count as negative.")
    gpl_edges: Literal["free", "scorer", "none"] = option(
        "free",
        "What is learnt of edges: 'free', a number each; 'scorer', the model's scorer (edge_scorer=True), which other "
        "graphs can be given to, too; 'none'.",
    )
    gpl_edge_kind: Literal["sigmoid", "softmax"] = option(
        "sigmoid", "Weights of edges: 'sigmoid', each for itself, or 'softmax', over all edges into a node."
    )
    gpl_edge_steps: Whole = option(5, "Steps of the edges' own Adam in an epoch.")
    gpl_edge_lr: Positive = option(0.1, "Learning rate of the edges' own Adam.")
    gpl_edge_start: float = option(2.0, "Logit of every edge at the beginning, with 'free'.")
    gpl_tie_directions: bool = option(True, "Whether both directions of an edge share their logit, with 'free'.")
    gpl_propagation_steps: Whole = option(1, "Steps K that labels take along the edges.")
    gpl_propagation_alpha: ShareOrZero = option(0.0, "Share of its label that a node keeps in a step.")
    gpl_propagation: Literal["lazy", "restart"] = option(
        "lazy", "What a node keeps in a step: a share of what it has ('lazy') or of what it had at first ('restart')."
    )
    gpl_lpl_form: Literal["nll", "log_negative"] = option(
        "nll", "Form of the label propagation loss: 'nll', or 'log_negative', the paper's as it is said to be."
    )
    gpl_negative_weight: NonNegative = option(1.0, "Weight of the negatives in the label propagation loss.")
    gpl_held_out: Proper = option(
        0.2,
        "Share of the known positives that are held out of training, where the graph has no held_out_mask; 0 where "
        "neither prior nor guide needs them.",
    )
    gpl_reduction: Literal["balanced", "sample"] = option(
        "balanced",
        "Loss of the ranking: 'balanced', the sum of both classes' means, or 'sample', the mean over nodes.",
    )
    gpl_pu_loss: Literal["sigmoid", "logistic"] = option("sigmoid", "Loss of a node in nnPU and uPU.")
    gpl_nnpu_beta: NonNegative = option(0.0, "How far nnPU lets the negatives' risk be below 0.")
    gpl_nnpu_gamma: NonNegative = option(
        1.0, "Weight of the gradient of the negatives' risk in nnPU, where that is below -beta."
    )
    gpl_seed: Seed = option(0, "Seed of held-out positives, of the guide and of sampled neighbours.")
    gpl_neighbors: list[int] | None = option(
        None,
        "How many edges into a node are drawn for each layer, those of the seeds first (-1: all); batches are then of "
        "per_device_train_batch_size seeds. By default the whole graph is one batch, an epoch one step.",
    )

    def check_options(self) -> None:
        self.gpl_prior = _prior(self.gpl_prior)
        super().check_options()
        self._check_neighbors()
        if self.gpl_prior == "en" and self.gpl_prior_update == "each_epoch":
            raise ValueError(
                "gpl_prior: found 'en' with gpl_prior_update='each_epoch', allowed is 'once': only after the warm-up "
                "are scores those of labelled against unlabelled"
            )
        if self.gpl_prior in ESTIMATES and self.gpl_objective != "naive" and not self.gpl_warmup_epochs:
            raise ValueError(
                f"gpl_warmup_epochs: found 0 with gpl_prior={self.gpl_prior!r}, allowed are 1 or more, or a number as "
                "the prior"
            )

    def _check_neighbors(self) -> None:
        neighbors: Any = self.gpl_neighbors
        if neighbors is None:
            return
        wholes = isinstance(neighbors, list | tuple) and all(map(_is_fan_out, neighbors))
        if not wholes or not neighbors:
            raise ValueError(
                f"gpl_neighbors: found {neighbors!r}, allowed are None and lists of integers >= 1, or -1 for all"
            )


def _is_fan_out(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and (int(value) >= 1 or int(value) == -1)


def _prior(value: Any) -> Any:
    """The word, or the number.

    Raises:
        ValueError: another word, or a number that is no share of both classes.
    """
    if value in ESTIMATES:
        return str(value)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < 1:
        raise ValueError(f"gpl_prior: found {value!r}, allowed are 'bbe', 'en' and numbers in (0, 1)")
    return number
