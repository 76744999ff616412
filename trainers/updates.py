"""Updates as a whole in any Trainer: what comes before their first micro-batch and after their last."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_ext.trainers.base import MethodMixin
from hf_ext.trainers.shards import Total, gather_anew


class UpdateMixin(MethodMixin):
    """Calls `begin_update` before the first micro-batch of an update, and `end_update` after the last one's backward.

    In between a method may have the weights moved: they are put back, bit for bit, at the end of the update, before
    gradients are clipped and the optimizer steps, and also if the training is interrupted. A mixin that moves them
    sets `perturbs = True`; there can be one in a Trainer.

    Raises:
        ValueError: at construction, for two mixins that move the weights.
    """

    args: Any
    model: Any
    perturbs: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._update_batches: list[dict[str, Any]] = []
        self._next_batch = 0
        self._unperturbed: list[tuple[Tensor, Tensor]] = []  # what has been moved, and the values it had
        super().__init__(*args, **kwargs)

    def check_arguments(self) -> None:
        super().check_arguments()
        kinds = [kind.__name__ for kind in type(self).__mro__ if vars(kind).get("perturbs")]
        if len(kinds) > 1:
            raise ValueError(f"{type(self).__name__}: found {', '.join(kinds)}, allowed is one that moves the weights")

    def check_whole_updates(self, name: str, *, in_parts: bool = False) -> None:
        """Refuse what has no whole weights and gradients between the backward pass and the optimizer.

        Args:
            name: of what needs them.
            in_parts: whether it is enough that every process has its part of each (FSDP2).

        Raises:
            ValueError: for sharded parameters (FSDP, DeepSpeed), several GPUs in one process, and optimizers that step
                during the backward pass.
        """
        found, allowed = self._division_of_weights(), "weights that are not sharded"
        if in_parts:
            found, allowed = "" if found == "FSDP2" else found, f"{allowed}, or are by FSDP2 alone"
        if found:
            raise ValueError(f"{name}: found {found}, allowed are {allowed}")
        if self.args.n_gpu > 1:
            raise ValueError(f"{name}: found several GPUs in one process, allowed is one per process (accelerate)")
        optim = str(getattr(self.args.optim, "value", self.args.optim))
        if "lomo" in optim or "layerwise" in optim:
            raise ValueError(f"optim: found {optim!r}, allowed are those that do not step during the backward pass")

    def _division_of_weights(self) -> str:
        """What shards the weights, or each of them; nothing where every process has them whole."""
        if self.is_deepspeed_enabled:
            return "DeepSpeed"
        if self.is_fsdp_enabled:
            return "FSDP2" if self.accelerator.is_fsdp2 else "FSDP1"
        return ""

    # ---------------------------------------------------------------------------------------------- of the method
    def begin_update(self, model: nn.Module, num_items_in_batch: Tensor | int | None) -> None:
        """Called before the first micro-batch. Cooperative: call `super()` first."""

    def end_update(self, model: nn.Module) -> None:
        """Called when all gradients are known. Cooperative: after `super()` the weights are where they were."""
        self.put_weights_back()

    def step_without_hooks(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """The step over a micro-batch of the Trainer behind: forward and backward."""
        return super().training_step(model, inputs, num_items_in_batch)

    # ---------------------------------------------------------------------------------------------- training
    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        samples, num_items = super().get_batch_samples(*args, **kwargs)
        self._update_batches, self._next_batch = samples, 0
        return samples, num_items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Trainer's step over a micro-batch; before the first one the update begins, after the last it ends."""
        if self._next_batch == 0:
            self.begin_update(model, num_items_in_batch)
        self._next_batch += 1
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._next_batch == len(self._update_batches):
            self.end_update(model)
        return loss

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:  # interrupted within an update, or out of memory and about to start again with smaller batches
            self.put_weights_back()

    # ---------------------------------------------------------------------------------------------- weights
    @torch.no_grad()
    def move_weights(self, params: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
        """Add a step to every parameter, or every part of one, until the end of the update."""
        self.put_back_later((param, param.detach().clone()) for param in params)
        if params:
            torch._foreach_add_(list(params), list(steps))

    def put_back_later(self, tensors: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Have tensors (buffers, say) take on these values at the end of the update."""
        self._unperturbed += tensors

    @torch.no_grad()
    def put_weights_back(self) -> None:
        """At once; with nothing moved nothing happens. Cooperative."""
        changed, self._unperturbed = self._unperturbed, []
        for tensor, saved in changed:
            tensor.copy_(saved)
        if changed:
            gather_anew(self.model_wrapped)


def norm_of(tensors: Sequence[Tensor], device: torch.device, total: Total | None = None) -> Tensor:
    """One norm over all tensors, for a log; `total` adds up over those of which these are parts."""
    norms = [norm.to(device) for norm in torch._foreach_norm(list(tensors))]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    return norm if total is None else total(norm.square()).sqrt()
