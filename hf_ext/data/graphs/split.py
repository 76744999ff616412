"""From a graph with classes to one with a few known positives: the usual protocol of positive-unlabelled learning."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from hf_ext._arguments import Bounds, Share, check_value
from hf_ext.data.graphs.checks import check_structure
from hf_ext.data.graphs.geometric import BaseTransform, Data

Mechanism = Literal["scar", "features"]
_HeldOut = Annotated[float, Bounds(at_least=0, below=1)]
_Natural = Annotated[int, Bounds(at_least=0)]
#: log-odds of being labelled that one standard deviation of the projected features is worth
_SLOPE = 2.0


class PUSplit(BaseTransform):
    """Keeps the labels of a share of one class's nodes and hides all others; a transform of PyTorch Geometric.

    Sets `positive_mask` and `held_out_mask`, bool `[N]`, and `pu_y`, int64 `[N]`: 1 in a positive class, 0 in another
    one, -1 where `y` is. An `unlabeled_mask` loses the known positives. The graph given stays as it is.

    Args:
        positive_classes: one class of `y`, or several. None: the largest, the lower one of equals.
        label_share: of the positives, to be labelled.
        held_out: of the labelled, to be held out of the training: in `held_out_mask` in place of `positive_mask`. At 0
            there is no such mask.
        mechanism: "scar", every positive is as likely to be labelled; or "features": the log-odds grow by 2 with every
            standard deviation of a random projection of their features, and their mean share is the same. Which of the
            labelled are held out does not depend on features.
        seed: of the draw and the projection. As many are drawn for all seeds and mechanisms.

    Raises:
        ValueError: options out of bounds; on the call, a graph that `check_structure` refuses or without `y`, classes
            that it does not have, or too few positives for one in each set that is asked for.
    """

    def __init__(
        self,
        positive_classes: int | Sequence[int] | None = None,
        label_share: float = 0.5,
        held_out: float = 0.2,
        mechanism: Mechanism = "scar",
        seed: int = 0,
    ) -> None:
        check_value("label_share", label_share, Share)
        check_value("held_out", held_out, _HeldOut)
        check_value("mechanism", mechanism, Mechanism)
        check_value("seed", seed, _Natural)
        self.positive_classes = _classes(positive_classes)
        self.label_share, self.held_out, self.mechanism, self.seed = label_share, held_out, mechanism, seed

    def forward(self, data: Any) -> Data:
        """The graph with masks; see the class."""
        check_structure(data)
        if "y" not in data:
            raise ValueError("y: found None, allowed are classes, integers [N]")
        classes = data.y.cpu()
        truth = torch.isin(classes, torch.tensor(self._positive(classes))).long().masked_fill(classes < 0, -1)
        places = (truth == 1).nonzero().flatten()
        labelled, held_out = self._sizes(len(places))
        generator = torch.Generator().manual_seed(self.seed)
        odds = torch.zeros(len(places), dtype=torch.float64)
        if self.mechanism == "features":
            odds = _SLOPE * _projected(data.x[places.to(data.x.device)].cpu().double(), generator)
        drawn = places[_systematic(_probabilities(odds, labelled), generator)]
        drawn = drawn[torch.randperm(len(drawn), generator=generator)]
        data.positive_mask = _mask(drawn[held_out:], data)
        if held_out:
            data.held_out_mask = _mask(drawn[:held_out], data)
        elif "held_out_mask" in data:
            del data.held_out_mask
        if "unlabeled_mask" in data:
            data.unlabeled_mask = data.unlabeled_mask & ~data.positive_mask
        data.pu_y = truth.to(data.y.device)
        return data

    def __repr__(self) -> str:
        return f"PUSplit({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def _positive(self, classes: Tensor) -> Sequence[int]:
        known, counts = classes[classes >= 0].unique(return_counts=True)
        if not len(known):
            raise ValueError("y: found no node of a known class, allowed is at least one")
        if self.positive_classes is None:
            return [int(known[counts.argmax()])]
        absent = set(self.positive_classes) - set(known.tolist())
        if absent:
            raise ValueError(
                f"positive_classes: found {min(absent)}, allowed are {', '.join(map(str, known.tolist()))}"
            )
        return self.positive_classes

    def _sizes(self, positives: int) -> tuple[int, int]:
        """How many are labelled, and how many of these are held out."""
        labelled = int(self.label_share * positives + 0.5)
        held_out = max(1, int(self.held_out * labelled + 0.5)) if self.held_out else 0
        if labelled <= held_out:
            raise ValueError(
                f"label_share: found {self.label_share}, which labels {labelled} of {positives} positives, allowed is "
                f"one that leaves {'one to train on and one to hold out' if held_out else 'one to train on'}"
            )
        return labelled, held_out


def _classes(given: Any) -> tuple[int, ...] | None:
    """One class, or several, as a tuple."""
    if given is None:
        return None
    classes = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if not classes:
        raise ValueError(f"positive_classes: found {given!r}, allowed are classes, or None for the largest")
    for one in classes:
        check_value("positive_classes", one, _Natural)
    return tuple(map(int, classes))


def _mask(places: Tensor, data: Data) -> Tensor:
    return torch.zeros(len(data.x), dtype=torch.bool).index_fill_(0, places, True).to(data.y.device)


def _projected(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random projection of standardised features, itself standardised, `[n]`; zeros if all are alike."""
    projected = _standardised(x) @ torch.randn(x.size(1), dtype=x.dtype, generator=generator)
    return _standardised(projected)


def _standardised(values: Tensor) -> Tensor:
    spread = values.std(0, correction=0)
    return torch.where(spread > 0, (values - values.mean(0)) / spread.where(spread > 0, torch.ones(())), 0)


def _probabilities(odds: Tensor, number: int) -> Tensor:
    """Probabilities `[n]` with these log-odds, up to a constant, whose sum is `number`."""
    low, high = -odds.max() - 50, -odds.min() + 50
    for _ in range(100):
        middle = (low + high) / 2
        if torch.sigmoid(odds + middle).sum() < number:
            low = middle
        else:
            high = middle
    return torch.sigmoid(odds + high)


def _systematic(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Indices, drawn without replacement with exactly these probabilities: as many as is their sum, a whole number."""
    order = torch.randperm(len(probabilities), generator=generator)
    number = int(probabilities.sum().round())
    until = probabilities[order].cumsum(0)
    until *= number / until[-1]
    ticks = (until + torch.rand((), dtype=until.dtype, generator=generator)).floor().long().clamp_(max=number)
    ticks[-1] = number  # rounding may have lost the last one
    return order[ticks.diff(prepend=torch.zeros(1, dtype=torch.int64)) > 0]
