"""Sharpness-aware steps in any Trainer: a first pass that says where to perturb the weights, a second from there.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (ICLR 2021, arXiv:2010.01412).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_ext.functional import gsam_descent, sagm_descent, sagm_perturbation, sam_perturbation
from hf_ext.trainers.finite import batch_statistics
from hf_ext.trainers.passes import same_randomness
from hf_ext.trainers.processes import average_over_processes
from hf_ext.trainers.shards import Total, own_parts, total_over_parts
from hf_ext.trainers.updates import UpdateMixin, norm_of


@dataclass(frozen=True)
class SharpnessRule:
    """Where the weights are perturbed to, and what is descended along from there; see `hf_ext.functional.disam`.

    Args:
        kind: `"sam"`; `"gsam"` and `"sagm"` use the gradient of the first pass again, and keep it until then.
        rho: length of the perturbation.
        alpha: of GSAM and SAGM.
        adaptive: measure the perturbation relative to the weights (ASAM).
    """

    kind: Literal["sam", "gsam", "sagm"]
    rho: float
    alpha: float = 0.0
    adaptive: bool = False

    def perturbation(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], total: Total | None = None
    ) -> list[Tensor]:
        """What is added to the weights, given the gradient of the first pass; `total` is that of parts of them."""
        options: dict[str, Any] = {"rho": self.rho, "adaptive": self.adaptive, "total": total}
        if self.kind == "sagm":
            return sagm_perturbation(params, grads, alpha=self.alpha, **options)
        return sam_perturbation(params, grads, **options)

    def descent(
        self, perturbed: Sequence[Tensor], grads: Sequence[Tensor], total: Total | None = None
    ) -> list[Tensor]:
        """What is descended along instead of the second pass's gradient, given both."""
        if self.kind == "sagm":
            return sagm_descent(perturbed, grads)
        return gsam_descent(perturbed, grads, alpha=self.alpha, total=total)


_KEPT = "perturbation/"


class SharpnessMixin(UpdateMixin):
    """Every update takes two passes over its micro-batches, with the same random numbers (dropout) in both.

    The first, at the weights as they are, gives the gradient that `rule` makes a step of. The second, at the perturbed
    weights, is the step of the Trainer that this is mixed with. Then the weights are put back, bit for bit, and the
    optimizer steps. Statistics of BatchNorm are those of the first pass. A mixin says by `rule` how, and may change
    the loss of the first pass, which lies between `begin_ascent` and `end_ascent`.

    With `every` above 1 a perturbation is for so many updates: those after the first have one pass, and statistics of
    BatchNorm are of that.

    Weights may be sharded (FSDP2): every process moves its part of each, and the next pass gathers the moved parts.

    Raises:
        ValueError: at construction, for weights sharded otherwise (FSDP1, DeepSpeed), or by FSDP2 without a shared
            perturbation or with one for several updates, several GPUs in one process, optimizers that step during
            the backward pass, and SAGM with scaled losses (fp16).
    """

    perturbs = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._kept: dict[str, Tensor] = {}  # the last perturbation, by names of weights, where others are to use it
        self._first_gradients: list[tuple[Tensor, Tensor]] = []  # weights and (parts of) their first pass's gradients
        super().__init__(*args, **kwargs)

    # ---------------------------------------------------------------------------------------------- of the method
    @property
    def rule(self) -> SharpnessRule | None:
        """How the weights are perturbed; None for no first pass at all."""
        raise NotImplementedError

    @property
    def shares_perturbation(self) -> bool:
        """Whether all processes take one perturbation, from the gradient of all."""
        return True

    @property
    def every(self) -> int:
        """How many updates, one after the other, take one perturbation; more than one with `"sam"` alone."""
        return 1

    def begin_ascent(self, micro_batches: list[dict[str, Any]]) -> bool:
        """Called before the first pass; returns whether it needs all losses before it differentiates any.

        Then a forward pass of all micro-batches but the last comes before it.
        """
        return False

    def end_ascent(self) -> None:
        """Called after the first pass, also if it failed."""

    def check_arguments(self) -> None:
        super().check_arguments()
        if self.rule is None:
            return
        self.check_whole_updates(str(self.method), in_parts=True)
        if self.is_fsdp_enabled and not self.shares_perturbation:
            raise ValueError(
                f"{self.method}: found a perturbation for each process with FSDP2, which knows but the gradient of "
                "all, allowed is one for all"
            )
        if self.is_fsdp_enabled and self.every > 1:
            raise ValueError(
                f"{self.method}_every: found {self.every} with FSDP2, allowed is 1: a checkpoint would hold a part of "
                "the perturbation"
            )
        if self.rule.kind == "sagm" and self.accelerator.scaler is not None:
            raise ValueError("fp16: found True with SAGM, whose step depends on the loss's scale, allowed is bf16")

    # ---------------------------------------------------------------------------------------------- training
    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        passes = 1 if self.rule is None else 1 + 1 / self.every
        return int(super().floating_point_ops(inputs) * passes)

    def begin_update(self, model: nn.Module, num_items_in_batch: Tensor | int | None) -> None:
        """The first pass, over all micro-batches, and the step to the perturbed weights."""
        super().begin_update(model, num_items_in_batch)
        if (rule := self.rule) is None:
            return
        if self._kept and self._within:
            self._perturb_again()
            return
        micro_batches = self._update_batches
        model.train()
        losses_first = self.begin_ascent(micro_batches)
        norms = batch_statistics(model)
        try:
            with same_randomness(self.args.device), self._gradients_of_ascent(model):
                if losses_first:
                    with same_randomness(self.args.device):
                        for inputs in micro_batches[:-1]:
                            self._losses_only(model, inputs, num_items_in_batch)
                        self.step_without_hooks(model, micro_batches[-1], num_items_in_batch)
                    statistics = [(buffer, buffer.clone()) for buffer in norms]
                    micro_batches = micro_batches[:-1]
                for inputs in micro_batches:
                    self.step_without_hooks(model, inputs, num_items_in_batch)
                if len(micro_batches) == len(self._update_batches):
                    statistics = [(buffer, buffer.clone()) for buffer in norms]
        finally:
            self.end_ascent()
        self.put_back_later(statistics)
        self._perturb(model, rule)
        model.zero_grad()

    @contextmanager
    def _gradients_of_ascent(self, model: Any) -> Iterator[None]:
        """Whichever micro-batch Trainer averages gradients over processes for: here that is done in the end.

        Sharded ones are averaged as each is divided, after every micro-batch, so that no process ever has all of them.
        """
        if not self.accelerator.is_fsdp2:
            with self.accelerator.no_sync(model):
                yield
            return
        each = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        model.set_requires_gradient_sync(True)
        try:
            yield
        finally:  # Trainer asks for it once, before the micro-batch that this comes before
            model.set_requires_gradient_sync(len(self._update_batches) == 1 or each)

    def end_update(self, model: nn.Module) -> None:
        """Both passes' gradients are known: what the rule makes of them is the update's."""
        self._set_descent()
        super().end_update(model)

    def put_weights_back(self) -> None:
        self._first_gradients = []
        super().put_weights_back()

    @torch.no_grad()
    def _losses_only(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> None:
        """A forward pass for the domains' losses alone."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)

    @torch.no_grad()
    def _perturb(self, model: nn.Module, rule: SharpnessRule) -> None:
        several = self.accelerator.num_processes > 1
        shared, reused = several and self.shares_perturbation, rule.kind != "sam"
        everywhere = shared or (several and reused)
        weights = [p for p in model.parameters() if p.requires_grad and (everywhere or p.grad is not None)]
        params, total = own_parts(weights), total_over_parts(weights)
        grads = own_parts(torch.zeros_like(p) if p.grad is None else p.grad for p in weights)
        if shared and total is None:  # else they have been averaged as they were divided
            average_over_processes(grads)
        if reused:
            first = [grad.clone() for grad in grads]
            if several and not shared:
                average_over_processes(first)
            self._first_gradients = list(zip(weights, first, strict=True))
        steps = rule.perturbation(params, grads, total)
        self._move(params, steps, total)
        if self.every > 1:
            names = {parameter: name for name, parameter in self.model.named_parameters()}
            self._kept = {names[weight]: step for weight, step in zip(weights, steps, strict=True)}

    @property
    def _within(self) -> bool:
        """Whether this update comes after another one that its perturbation is shared with."""
        return self.state.global_step % self.every != 0

    def _perturb_again(self) -> None:
        weights = dict(self.model.named_parameters())
        params = [weights[name] for name in self._kept]
        self._move(params, [step.to(param) for step, param in zip(self._kept.values(), params, strict=True)])

    def _move(self, params: Sequence[Tensor], steps: Sequence[Tensor], total: Total | None = None) -> None:
        self.move_weights(params, steps)
        if steps:
            self.record(diagnostics={"perturbation_norm": norm_of(steps, self.args.device, total)})

    # ---------------------------------------------------------------------------------------------- checkpoints
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a perturbation of an earlier run is gone."""
        self._kept = {}
        return super().train(*args, **kwargs)

    def checkpoint_state(self) -> dict[str, Any]:
        kept = self._kept if self._within else {}
        return super().checkpoint_state() | {f"{_KEPT}{name}": step for name, step in kept.items()}

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        self._kept = {name.removeprefix(_KEPT): step for name, step in state.items() if name.startswith(_KEPT)}

    @torch.no_grad()
    def _set_descent(self) -> None:
        """Put the descent of two gradients where the optimizer looks."""
        rule = self.rule
        if rule is None or not self._first_gradients:
            return
        weights, first = zip(*self._first_gradients, strict=True)
        self._first_gradients = []
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        perturbed = own_parts(weight.grad for weight in weights)
        for place, grad in zip(perturbed, rule.descent(perturbed, first, total_over_parts(weights)), strict=True):
            place.copy_(grad)
