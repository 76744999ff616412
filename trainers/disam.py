"""DISAM in any Trainer: two passes per update, the first of which finds where the domains' losses rise together.

DISAM, domain-inspired sharpness-aware minimization (Zhang et al., ICLR 2024, arXiv:2405.18861).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from hf_ext.data.columns import holds_text
from hf_ext.data.samplers import BalancedSampler
from hf_ext.functional import domain_sums, domain_variance_weights, sam_perturbation
from hf_ext.trainers.disam_arguments import DISAMArguments
from hf_ext.trainers.domains import Domains, domains_of_rows
from hf_ext.trainers.losses import per_sample_losses, shifts_labels
from hf_ext.trainers.sharpness import SharpnessMixin

logger = logging.get_logger(__name__)


@dataclass
class DISAMConfig(DISAMArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of DISAM."""


@dataclass
class _Ascent:
    """The first pass of one update.

    Args:
        sums, counts: losses and samples of every domain, `[D]`; of all processes once none is pending.
        pending: micro-batches whose losses are not in them yet.
        weights: what a sample of every domain adds to its weight of 1/N, `[D]`, as soon as it is known.
    """

    sums: Tensor
    counts: Tensor
    pending: int
    weights: Tensor | None = None


class DISAMMixin(SharpnessMixin):
    """Perturbs the weights along `L_avg - lambda Var_m(L_m)` and descends from there.

    The two passes are `SharpnessMixin`'s; the first gives the gradient of that difference. `L_avg` is whatever the
    Trainer minimises that this is mixed with (label smoothing, TwD loss and so on); the domains' losses are means over
    their samples, for tokens over a sample's mean.

    Logged per update: "loss" at the perturbed weights, `clean_loss` at the others, `domain_loss/<name>`,
    `ascent_weight/<name>` (what a domain weighs in the ascent gradient; they add up to 1), `domain_loss_variance` and
    `perturbation_norm`. Evaluation is the wrapped Trainer's; it reports `eval_domain_<name>_<metric>` and
    `eval_worst_domain_<metric>`.

    Args:
        per_sample_loss_func: `(outputs, labels) -> [B]`, where the loss is not one that transformers' models have.

    Raises:
        ValueError: at construction, for a missing domain column, sharded parameters (FSDP, DeepSpeed), optimizers
            that step during the backward pass, packed sequences, or a loss that gives no losses of samples.
    """

    args: Any  # TrainingArguments with DISAMArguments mixed in
    model: Any
    method = "disam"

    def __init__(
        self, *args: Any, per_sample_loss_func: Callable[[Any, Tensor], Tensor] | None = None, **kwargs: Any
    ) -> None:
        self.per_sample_loss_func = per_sample_loss_func
        self._ascent: _Ascent | None = None
        self._running: Tensor | None = None
        self._logged: dict[str, Tensor] = {}
        self._known_domains: Domains | None = None
        super().__init__(*args, **kwargs)

    # ---------------------------------------------------------------------------------------------- arguments
    @property
    def own_columns(self) -> tuple[str, ...]:
        return (*super().own_columns, self.args.disam_domain_column)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return (*super().text_columns, self.args.disam_domain_column)

    @property
    def groups(self) -> dict[str, str]:
        return super().groups | {"domain": self.args.disam_domain_column}

    def check_arguments(self) -> None:
        super().check_arguments()
        args, column = self.args, self.args.disam_domain_column
        needed = args.disam_domain_sampler == "balanced" or bool(args.disam_rho and args.disam_lambda)
        columns = getattr(self.train_dataset, "column_names", None)
        if needed and isinstance(columns, list) and column not in columns:
            raise ValueError(
                f"disam_domain_column: found no column {column!r} in train_dataset, allowed are those of integers or "
                f"names among {sorted(columns)}; disam_lambda=0 (SAM) needs none"
            )
        if args.disam_domain_sampler == "balanced":
            if not hasattr(self.train_dataset, "__len__"):
                raise ValueError("disam_domain_sampler: found 'balanced' for a stream, allowed is 'random'")
            if args.train_sampling_strategy != "random":
                found = f"'balanced' with train_sampling_strategy={args.train_sampling_strategy!r}"
                raise ValueError(f"disam_domain_sampler: found {found}, allowed is 'random' with that")
        if args.disam_rho and args.disam_lambda and self.train_dataset is not None:
            self._check_sample_losses()
            _ = self._domains

    def _check_sample_losses(self) -> None:
        for option in ("packing", "padding_free"):
            if getattr(self.args, option, False):
                raise ValueError(
                    f"{option}: found True, allowed is False: a sequence that mixes samples has no domain"
                )
        if self.compute_loss_func is not None and self.per_sample_loss_func is None:
            raise ValueError(
                "compute_loss_func: found one without per_sample_loss_func, allowed are both, or disam_lambda=0"
            )

    @property
    def _domains(self) -> Domains:
        if self._known_domains is None:
            column = self.args.disam_domain_column
            names, number = self.column_names(column), self.args.disam_num_domains
            self._known_domains = Domains(self.train_dataset, column, names, number)
        return self._known_domains

    @property
    def column_bounds(self) -> dict[str, int]:
        column = self.args.disam_domain_column
        dataset: Any = self.train_dataset
        listed = hasattr(dataset, "__len__") and column in (getattr(dataset, "column_names", None) or ())
        known = listed and not holds_text(dataset, column)
        # data to evaluate on may have further domains; of a stream, those that are named are all there are
        bound = 2**31 if known else self.args.disam_num_domains
        return super().column_bounds | ({column: bound} if bound else {})

    # ---------------------------------------------------------------------------------------------- data
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.disam_domain_sampler != "balanced":
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        ids = domains_of_rows(dataset, self.args.disam_domain_column)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # asked for its epoch, since `set_epoch` does not reach it when a resumed run skips batches
        return BalancedSampler(ids, seed=seed, epoch=lambda: int(self.state.epoch or 0))

    # ---------------------------------------------------------------------------------------------- the first pass
    @property
    def perturbs(self) -> bool:
        return bool(self.args.disam_rho)

    @property
    def shares_perturbation(self) -> bool:
        return bool(self.args.disam_sync_perturbation)

    def perturbation(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        return sam_perturbation(params, grads, rho=self.args.disam_rho, adaptive=self.args.disam_adaptive)

    def begin_ascent(self, micro_batches: list[dict[str, Any]]) -> bool:
        self._ascent = self._new_ascent(micro_batches)
        return self._ascent is not None and self._ascent.weights is None

    def end_ascent(self) -> None:
        self._ascent = None

    def _new_ascent(self, micro_batches: list[dict[str, Any]]) -> _Ascent | None:
        """None where the data has no domains, which is SAM."""
        column = self.args.disam_domain_column
        if not all(column in inputs for inputs in micro_batches):
            if self.args.disam_lambda:
                raise ValueError(
                    f"disam_domain_column: found no {column!r} in a batch, allowed are batches with domains"
                )
            return None
        zeros = torch.zeros(self._domains.number, device=self.args.device)
        ascent = _Ascent(zeros, zeros, pending=len(micro_batches))
        if not self.args.disam_lambda:
            ascent.weights = zeros
        elif self.args.disam_domain_weights == "running":
            ids = torch.cat([inputs[column] for inputs in micro_batches]).to(zeros.device)
            counts = self.accelerator.reduce(zeros.index_add(0, ids, torch.ones_like(ids, dtype=zeros.dtype)))
            ascent.weights = self._running_weights(counts)
        return ascent

    def _running_weights(self, counts: Tensor) -> Tensor:
        if self._running is None:
            return torch.zeros_like(counts)
        known = counts.where(self._running.isfinite(), 0)
        return domain_variance_weights(self._running.nan_to_num(), known, lambda_=self.args.disam_lambda)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of the wrapped Trainer; in the first pass `-lambda Var_m(L_m)` is added, for its gradient."""
        ascent, labels = self._ascent, inputs.get("labels")
        if ascent is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        domain_ids = self.batch_columns[self.args.disam_domain_column]
        losses = self._sample_losses(outputs, labels)
        if ascent.pending:
            self._note(ascent, loss.detach(), losses.detach(), domain_ids, num_items_in_batch)
        if ascent.weights is not None and self.args.disam_lambda:
            variance_term = (ascent.weights[domain_ids] * losses).sum()
            loss = self.add_sum_term(loss, variance_term, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _sample_losses(self, outputs: Any, labels: Any) -> Tensor:
        if self.per_sample_loss_func is not None:
            return self.per_sample_loss_func(outputs, labels)
        logits = outputs.get("logits") if isinstance(outputs, dict) else outputs[1] if len(outputs) > 1 else None
        if logits is None or labels is None:
            raise ValueError(
                "model: found no logits and labels to take losses of samples from, allowed are models that give both, "
                "or a per_sample_loss_func"
            )
        shift, smoothing = shifts_labels(self), self.args.label_smoothing_factor
        return per_sample_losses(logits, labels, shift_labels=shift, label_smoothing=smoothing)

    def _note(self, ascent: _Ascent, loss: Tensor, losses: Tensor, domain_ids: Tensor, num_items: Any) -> None:
        sums, counts = domain_sums(losses, domain_ids, num_domains=len(ascent.sums))
        ascent.sums, ascent.counts = ascent.sums + sums, ascent.counts + counts
        ascent.pending -= 1
        share = 1 if self._is_normalised(num_items) else self.current_gradient_accumulation_steps
        self._log("clean_loss", loss / share)
        if ascent.pending == 0:
            ascent.sums, ascent.counts = self.accelerator.reduce(torch.stack([ascent.sums, ascent.counts]))
            self._complete(ascent)

    def _complete(self, ascent: _Ascent) -> None:
        means = ascent.sums / ascent.counts.clamp(min=1)
        present = ascent.counts > 0
        if ascent.weights is None:
            ascent.weights = domain_variance_weights(means, ascent.counts, lambda_=self.args.disam_lambda)
        if self.args.disam_domain_weights == "running":
            before = torch.full_like(means, torch.nan) if self._running is None else self._running
            decay = self.args.disam_running_decay
            after = torch.where(before.isnan(), means, decay * before + (1 - decay) * means)
            self._running = after.where(present, before)
        number = present.sum().clamp(min=1)
        apart = (means - means.sum() / number).where(present, 0)
        self.record(domain_loss_variance=apart.square().sum() / number)
        share = ascent.counts / ascent.counts.sum()
        self._log("ascent_weights", share + ascent.counts * ascent.weights)
        self._log("sums", ascent.sums)
        self._log("counts", ascent.counts)
        self._log("updates", torch.ones_like(number, dtype=means.dtype))

    # ---------------------------------------------------------------------------------------------- logs and state
    def _log(self, name: str, value: Tensor) -> None:
        self._logged[name] = self._logged.get(name, torch.zeros_like(value)) + value

    def _mean_terms(self) -> dict[str, float]:
        terms = super()._mean_terms()
        logged, self._logged = self._logged, {}
        if not logged:
            return terms
        updates = float(logged["updates"])
        terms["clean_loss"] = float(self.accelerator.reduce(logged["clean_loss"], reduction="mean")) / updates
        table = torch.stack([logged["sums"], logged["counts"], logged["ascent_weights"]]).tolist()
        for domain, (total, count, weight) in enumerate(zip(*table, strict=True)):
            if count:
                name = self._domains.name(domain)
                terms[f"domain_loss/{name}"] = total / count
                terms[f"ascent_weight/{name}"] = weight / updates
                if weight < 0:
                    logger.warning_once(
                        f"disam_lambda: with {self.args.disam_lambda} the ascent weight of domain {name!r} is "
                        "negative: the perturbation lowers its loss"
                    )
        return terms

    def checkpoint_state(self) -> dict[str, Any]:
        own: dict[str, Any] = {"disam_domains": self.column_names(self.args.disam_domain_column)}
        if self._running is not None:
            own["disam_running"] = self._running
        return super().checkpoint_state() | own

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        column = self.args.disam_domain_column
        saved, found = state.get("disam_domains"), self.column_names(column)
        if saved and found and saved[: self._domains.number] != found[: self._domains.number]:
            raise ValueError(f"{column}: found domains {found}, allowed are those of the checkpoint, {saved}")
        if (running := state.get("disam_running")) is not None:
            self._running = running.to(self.args.device)


class DISAMTrainer(DISAMMixin, Trainer):
    """`Trainer` with DISAM; see `DISAMMixin`. Takes `DISAMConfig` as `args`."""
