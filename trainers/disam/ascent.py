"""What every domain weighs in DISAM's ascent, update after update."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.utils import logging

from hf_ext.functional import domain_sums, domain_variance_weights

logger = logging.get_logger(__name__)


class DomainAscent:
    """The domains' losses of one first pass after the other, and the weights that follow from them.

    Weights `"global"` are known once all losses of an update are; `"running"` ones, from a running mean of the
    domains' losses, before the pass.

    Args:
        args: with DISAM's arguments.
        accelerator: whose processes share an update.
        number: of domains, D.
    """

    def __init__(self, args: Any, accelerator: Accelerator, number: int) -> None:
        self.args, self.accelerator = args, accelerator
        self._zeros = torch.zeros(number, device=accelerator.device)
        #: running mean of the domains' losses, `[D]`, NaN before a domain is seen
        self.running: Tensor | None = None
        #: what a sample of every domain adds to its weight of 1/N, `[D]`, as soon as it is known
        self.weights: Tensor | None = None
        #: micro-batches of this pass whose losses are still to be noted
        self.pending = 0
        #: whether a first pass is under way
        self.active = False
        self._sums = self._counts = self._zeros
        self._logged: dict[str, Tensor] = {}

    def begin(self, ids: Sequence[Tensor]) -> None:
        """A first pass over micro-batches with these domains."""
        self.active, self.pending, self.weights = True, len(ids), None
        self._sums = self._counts = self._zeros
        if not self.args.disam_lambda:
            self.weights = self._zeros
        elif self.args.disam_domain_weights == "running":
            rows = torch.cat(list(ids)).to(self._zeros.device)
            counts = self._zeros.index_add(0, rows, torch.ones_like(rows, dtype=self._zeros.dtype))
            self.weights = self._running_weights(self.accelerator.reduce(counts))

    def _running_weights(self, counts: Tensor) -> Tensor:
        if self.running is None:
            return self._zeros
        known = counts.where(self.running.isfinite(), 0)
        return domain_variance_weights(self.running.nan_to_num(), known, lambda_=self.args.disam_lambda)

    def end(self) -> None:
        """The first pass is over."""
        self.active = False

    def note(self, loss: Tensor, losses: Tensor, ids: Tensor) -> None:
        """A micro-batch's share of the update's loss, its losses `[B]` and domains `[B]`."""
        sums, counts = domain_sums(losses, ids, num_domains=len(self._zeros))
        self._sums, self._counts = self._sums + sums, self._counts + counts
        self._log("clean_loss", loss)
        self.pending -= 1
        if self.pending == 0:
            self._complete()

    def _complete(self) -> None:
        sums, counts = self.accelerator.reduce(torch.stack([self._sums, self._counts]))
        means, present = sums / counts.clamp(min=1), counts > 0
        if self.weights is None:
            self.weights = domain_variance_weights(means, counts, lambda_=self.args.disam_lambda)
        if self.args.disam_domain_weights == "running":
            before = torch.full_like(means, torch.nan) if self.running is None else self.running
            decay = self.args.disam_running_decay
            after = torch.where(before.isnan(), means, decay * before + (1 - decay) * means)
            self.running = after.where(present, before)
        number = present.sum().clamp(min=1)
        apart = (means - means.sum() / number).where(present, 0)
        self._log("variance", apart.square().sum() / number)
        self._log("ascent_weights", counts / counts.sum() + counts * self.weights)
        self._log("sums", sums)
        self._log("counts", counts)
        self._log("updates", torch.ones_like(number, dtype=means.dtype))

    def _log(self, name: str, value: Tensor) -> None:
        self._logged[name] = self._logged.get(name, torch.zeros_like(value)) + value

    def take_terms(self, name_of: Callable[[int], str]) -> dict[str, float]:
        """Means to log over the updates since the last time; a domain is called `name_of(id)`."""
        logged, self._logged = self._logged, {}
        if not logged:
            return {}
        updates = float(logged["updates"])
        clean = self.accelerator.reduce(logged["clean_loss"], reduction="mean")
        terms = {
            "clean_loss": float(clean) / updates,
            "domain_loss_variance": float(logged["variance"]) / updates,
        }
        table = torch.stack([logged["sums"], logged["counts"], logged["ascent_weights"]]).tolist()
        for domain, (total, count, weight) in enumerate(zip(*table, strict=True)):
            if count:
                name = name_of(domain)
                terms[f"domain_loss/{name}"] = total / count
                terms[f"ascent_weight/{name}"] = weight / updates
                if weight < 0:
                    logger.warning_once(
                        f"disam_lambda: with {self.args.disam_lambda} the ascent weight of domain {name!r} is "
                        "negative: the perturbation lowers its loss"
                    )
        return terms
