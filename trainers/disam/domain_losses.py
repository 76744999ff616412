"""The domains' losses in DISAM's first pass, update after update."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.utils import logging

from hf_ext.functional import domain_means, domain_sums, domain_variance, domain_variance_weights

logger = logging.get_logger(__name__)


class DomainLosses:
    """Sums of the domains' losses over the micro-batches and processes of an update, and what is logged of them.

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
        #: sums and counts of the losses `[D]` that the variance is taken of, as soon as they are known
        self.whole: tuple[Tensor, Tensor] | None = None
        #: micro-batches of this pass whose losses are still to be added
        self.pending = 0
        #: whether a first pass is under way
        self.active = False
        self._sums = self._counts = self._zeros
        self._logged: dict[str, Tensor] = {}

    def begin(self, ids: Sequence[Tensor]) -> None:
        """A first pass over micro-batches with these domains, each `[B]`."""
        self.active, self.pending, self.whole = True, len(ids), None
        self._sums = self._counts = self._zeros
        if self.args.disam_domain_weights == "running" and self.args.disam_lambda:
            rows = torch.cat(list(ids)).to(self._zeros.device)
            counts = self._zeros.index_add(0, rows, torch.ones_like(rows, dtype=self._zeros.dtype))
            self.whole = self._by_running_mean(self.accelerator.reduce(counts))

    def _by_running_mean(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """As if every domain's losses in this update had their running mean; a domain without one is left out."""
        means = torch.full_like(counts, torch.nan) if self.running is None else self.running
        counts = counts.where(means.isfinite(), 0)
        return means.nan_to_num() * counts, counts

    @property
    def awaited(self) -> bool:
        """Whether the variance is not known before all losses of the update are."""
        return self.whole is None and bool(self.args.disam_lambda)

    def end(self) -> None:
        """The first pass is over."""
        self.active = False

    def add(self, loss: Tensor, losses: Tensor, ids: Tensor) -> None:
        """A micro-batch's share of the update's loss, its losses `[B]` and domains `[B]`."""
        sums, counts = domain_sums(losses, ids, num_domains=len(self._zeros))
        self._sums, self._counts = self._sums + sums, self._counts + counts
        self._log("clean_loss", loss)
        self.pending -= 1
        if self.pending == 0:
            self._complete()

    def _complete(self) -> None:
        sums, counts = self.accelerator.reduce(torch.stack([self._sums, self._counts]))
        if self.whole is None:
            self.whole = sums, counts
        means = domain_means(sums, counts)
        if self.args.disam_domain_weights == "running":
            before = torch.full_like(means, torch.nan) if self.running is None else self.running
            decay = self.args.disam_running_decay
            after = torch.where(before.isnan(), means, decay * before + (1 - decay) * means)
            self.running = after.where(counts > 0, before)
        self._log("variance", domain_variance(means, counts))
        self._log("ascent_weights", counts / counts.sum() + counts * self._variance_weights())
        self._log("sums", sums)
        self._log("counts", counts)
        self._log("updates", torch.ones_like(sums[0]))

    def _variance_weights(self) -> Tensor:
        assert self.whole is not None
        sums, counts = self.whole
        return domain_variance_weights(domain_means(sums, counts), counts, lambda_=self.args.disam_lambda)

    def _log(self, name: str, value: Tensor) -> None:
        self._logged[name] = self._logged.get(name, torch.zeros_like(value)) + value

    def take_logs(self, name_of: Callable[[int], str]) -> dict[str, float]:
        """Means to log over the updates since the last time; a domain is called `name_of(id)`."""
        logged, self._logged = self._logged, {}
        if not logged:
            return {}
        updates = float(logged["updates"])
        clean = self.accelerator.reduce(logged["clean_loss"], reduction="mean")
        logs = {
            "clean_loss": float(clean) / updates,
            "domain_loss_variance": float(logged["variance"]) / updates,
        }
        table = torch.stack([logged["sums"], logged["counts"], logged["ascent_weights"]]).tolist()
        for domain, (total, count, weight) in enumerate(zip(*table, strict=True)):
            if count:
                name = name_of(domain)
                logs[f"domain_loss/{name}"] = total / count
                logs[f"ascent_weight/{name}"] = weight / updates
                if weight < 0:
                    logger.warning_once(
                        f"disam_lambda: with {self.args.disam_lambda} the ascent weight of domain {name!r} is "
                        "negative: the perturbation lowers its loss"
                    )
        return logs
