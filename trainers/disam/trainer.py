"""DISAM in any Trainer: two passes per update, the first of which finds where the domains' losses rise together.

DISAM, domain-inspired sharpness-aware minimization (Zhang et al., ICLR 2024, arXiv:2405.18861).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_ext.data.columns import holds_text, ids_of_rows
from hf_ext.data.samplers import BalancedSampler
from hf_ext.functional import disam_ascent_loss
from hf_ext.trainers.disam.arguments import DISAMArguments, check_data, check_sample_losses, sharpness_rule
from hf_ext.trainers.disam.domain_losses import DomainLosses
from hf_ext.trainers.disam.domains import Domains
from hf_ext.trainers.disam.sharpness import SharpnessMixin, SharpnessRule
from hf_ext.trainers.losses import label_places, logits_of, sample_losses


@dataclass
class DISAMConfig(DISAMArguments, TrainingArguments):
    """`TrainingArguments` with the arguments of DISAM."""


class DISAMMixin(SharpnessMixin):
    """Perturbs the weights along `L_avg - lambda Var_m(L_m)` and descends from there.

    The two passes are `SharpnessMixin`'s; the first gives the gradient of that difference. `L_avg` is whatever the
    Trainer minimises that this is mixed with (label smoothing, TwD loss and so on); the domains' losses are means over
    their samples, for tokens over a sample's mean.

    Logged per update: "loss" at the perturbed weights, `clean_loss` at the others, `domain_loss/<name>`,
    `ascent_weight/<name>` (share of a domain in the ascent gradient; they add up to 1), `domain_loss_variance` and
    `perturbation_norm`. Evaluation is the wrapped Trainer's; it reports `eval_domain_<name>_<metric>` and
    `eval_worst_domain_<metric>`.

    Args:
        per_sample_loss_func: `(outputs, labels) -> [B]`, where the loss is not one that transformers' models have.

    Raises:
        ValueError: at construction, for a missing domain column, weights sharded by other means than FSDP2, optimizers
            that step during the backward pass, packed sequences, or a loss that gives no losses of samples.
    """

    args: Any  # TrainingArguments with DISAMArguments mixed in
    model: Any
    method = "disam"
    arguments = DISAMArguments

    def __init__(
        self, *args: Any, per_sample_loss_func: Callable[[Any, Tensor], Tensor] | None = None, **kwargs: Any
    ) -> None:
        self.per_sample_loss_func = per_sample_loss_func
        self._domain_losses: DomainLosses | None = None
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
        check_data(self.args, self.train_dataset)
        if self.args.disam_rho and self.args.disam_lambda and self.train_dataset is not None:
            own_loss = self.compute_loss_func is not None and self.per_sample_loss_func is None
            check_sample_losses(self.args, own_loss=own_loss)
            _ = self._domains

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
        ids = ids_of_rows(dataset, self.args.disam_domain_column)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # asked for its epoch, since `set_epoch` does not reach it when a resumed run skips batches
        return BalancedSampler(ids, seed=seed, epoch=lambda: int(self.state.epoch or 0))

    # ---------------------------------------------------------------------------------------------- the first pass
    @property
    def rule(self) -> SharpnessRule | None:
        return sharpness_rule(self.args)

    @property
    def shares_perturbation(self) -> bool:
        return bool(self.args.disam_sync_perturbation)

    @property
    def every(self) -> int:
        return int(self.args.disam_every)

    def begin_ascent(self, micro_batches: list[dict[str, Any]]) -> bool:
        column = self.args.disam_domain_column
        if all(column in inputs for inputs in micro_batches):
            self._ascent.begin([inputs[column] for inputs in micro_batches])
            return self._ascent.awaited
        if self.args.disam_lambda:  # without it this is SAM, which needs no domains
            raise ValueError(f"disam_domain_column: found no {column!r} in a batch, allowed are batches with domains")
        return False

    def end_ascent(self) -> None:
        if self._domain_losses is not None:
            self._domain_losses.end()

    @property
    def _ascent(self) -> DomainLosses:
        if self._domain_losses is None:
            self._domain_losses = DomainLosses(self.args, self.accelerator, self._domains.number)
        return self._domain_losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of the wrapped Trainer, `L_avg`; in the first pass the ascent loss, `L_avg - lambda Var_m(L_m)`."""
        ascent, labels = self._domain_losses, inputs.get("labels")
        if ascent is None or not ascent.active:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        domain_ids = self.batch_columns[self.args.disam_domain_column]
        losses = self._sample_losses(outputs, labels if labels is None else label_places(model, inputs, labels))
        if ascent.pending:
            share = 1 if self._is_normalised(num_items_in_batch) else self.current_gradient_accumulation_steps
            ascent.add(loss.detach() / share, losses.detach(), domain_ids)
        if ascent.whole is not None and self.args.disam_lambda:
            # neither accumulation nor DDP divides the variance, which is that of the whole update in every part of it
            lambda_ = self.args.disam_lambda * self.sum_scale(num_items_in_batch)
            loss = disam_ascent_loss(losses, domain_ids, lambda_=lambda_, average=loss, whole=ascent.whole)
        return (loss, outputs) if return_outputs else loss

    def _sample_losses(self, outputs: Any, labels: Any) -> Tensor:
        if self.per_sample_loss_func is not None:
            return self.per_sample_loss_func(outputs, labels)
        logits = logits_of(outputs)
        if logits is None or labels is None:
            raise ValueError(
                "model: found no logits and labels to take losses of samples from, allowed are models that give both, "
                "or a per_sample_loss_func"
            )
        return sample_losses(self, logits, labels, label_smoothing=self.args.label_smoothing_factor)

    # ---------------------------------------------------------------------------------------------- logs and state
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; running means of an earlier run, as of another trial of a search, are gone."""
        self._domain_losses = None
        return super().train(*args, **kwargs)

    def _recorded_means(self) -> dict[str, float]:
        logs = super()._recorded_means()
        if self._domain_losses is not None:
            own = self._domain_losses.take_logs(self._domains.name)
            self.declare_loss_terms(name for name in own if name == "clean_loss" or name.startswith("domain_loss/"))
            logs |= own
        return logs

    def checkpoint_state(self) -> dict[str, Any]:
        own: dict[str, Any] = {"disam_domains": self.column_names(self.args.disam_domain_column)}
        if self._domain_losses is not None and self._domain_losses.running is not None:
            own["disam_running"] = self._domain_losses.running
        return super().checkpoint_state() | own

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        column = self.args.disam_domain_column
        saved, names = state.get("disam_domains"), self.column_names(column)
        if saved and names and saved[: self._domains.number] != names[: self._domains.number]:
            raise ValueError(f"{column}: found domains {names}, allowed are those of the checkpoint, {saved}")
        if (running := state.get("disam_running")) is not None:
            self._ascent.running = running.to(self.args.device)


class DISAMTrainer(DISAMMixin, Trainer):
    """`Trainer` with DISAM; see `DISAMMixin`. Takes `DISAMConfig` as `args`."""
