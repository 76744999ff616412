"""Sharpness-aware steps in any Trainer: a first pass that says where to perturb the weights, a second from there.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (ICLR 2021, arXiv:2010.01412).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_ext.functional import gsam_descent, sagm_descent, sagm_perturbation, sam_perturbation
from hf_ext.trainers.finite import batch_statistics
from hf_ext.trainers.passes import same_randomness
from hf_ext.trainers.processes import average_over_processes
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

    def perturbation(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """What is added to the weights, given the gradient of the first pass."""
        if self.kind == "sagm":
            return sagm_perturbation(params, grads, rho=self.rho, alpha=self.alpha, adaptive=self.adaptive)
        return sam_perturbation(params, grads, rho=self.rho, adaptive=self.adaptive)

    def descent(self, perturbed: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """What is descended along instead of the second pass's gradient, given both."""
        return (
            sagm_descent(perturbed, grads) if self.kind == "sagm" else gsam_descent(perturbed, grads, alpha=self.alpha)
        )


class SharpnessMixin(UpdateMixin):
    """Every update takes two passes over its micro-batches, with the same random numbers (dropout) in both.

    The first, at the weights as they are, gives the gradient that `rule` makes a step of. The second, at the perturbed
    weights, is the step of the Trainer that this is mixed with. Then the weights are put back, bit for bit, and the
    optimizer steps. Statistics of BatchNorm are those of the first pass. A mixin says by `rule` how, and may change
    the loss of the first pass, which lies between `begin_ascent` and `end_ascent`.

    Raises:
        ValueError: at construction, for sharded parameters (FSDP, DeepSpeed), several GPUs in one process,
            optimizers that step during the backward pass, and SAGM with scaled losses (fp16).
    """

    perturbs = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._first_gradients: list[tuple[Tensor, Tensor]] = []  # weights and their gradients in the first pass
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
        self.check_whole_updates(str(self.method))
        if self.rule.kind == "sagm" and self.accelerator.scaler is not None:
            raise ValueError("fp16: found True with SAGM, whose step depends on the loss's scale, allowed is bf16")

    # ---------------------------------------------------------------------------------------------- training
    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return super().floating_point_ops(inputs) * (1 if self.rule is None else 2)

    def begin_update(self, model: nn.Module, num_items_in_batch: Tensor | int | None) -> None:
        """The first pass, over all micro-batches, and the step to the perturbed weights."""
        super().begin_update(model, num_items_in_batch)
        if (rule := self.rule) is None:
            return
        micro_batches = self._update_batches
        model.train()
        losses_first = self.begin_ascent(micro_batches)
        norms = batch_statistics(model)
        try:
            # the gradients are averaged over processes in the end, whichever micro-batch Trainer would do it for
            with same_randomness(self.args.device), self.accelerator.no_sync(model):
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
        params: list[Tensor] = [
            p for p in model.parameters() if p.requires_grad and (everywhere or p.grad is not None)
        ]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        if shared:
            average_over_processes(grads)
        if reused:
            first = [grad.clone() for grad in grads]
            if several and not shared:
                average_over_processes(first)
            self._first_gradients = list(zip(params, first, strict=True))
        steps = rule.perturbation(params, grads)
        self.move_weights(params, steps)
        if steps:
            self.record(diagnostics={"perturbation_norm": norm_of(steps, self.args.device)})

    @torch.no_grad()
    def _set_descent(self) -> None:
        """Put the descent of two gradients where the optimizer looks."""
        rule = self.rule
        if rule is None or not self._first_gradients:
            return
        params, first = zip(*self._first_gradients, strict=True)
        self._first_gradients = []
        perturbed = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
        for param, grad in zip(params, rule.descent(perturbed, first), strict=True):
            if param.grad is None:
                param.grad = grad
            else:
                param.grad.copy_(grad)
