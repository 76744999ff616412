"""How Trainer scales a loss: terms of a method at the right scale, and models whose own loss is not as it expects."""

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import Trainer

from hf_ext._models import base_model
from hf_ext.trainers.passes import evaluation_mode, same_randomness
from hf_ext.trainers.processes import model_of

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_UNCHANGED = 1e-4  # relative difference of two losses of which one would be half of the other


class LossScaleMixin(_Base):
    """Terms of a loss at their scale; and a warning of losses that Trainer scales wrongly.

    Where a model's forward takes any keyword, Trainer hands it `num_items_in_batch`, expects the loss to be a sum that
    was divided by it, and so multiplies it by the number of processes and leaves it undivided under accumulation. Some
    models (BERT's classifiers) take the keyword and return a mean. With several processes or micro-batches a probe
    before the first step tells: the loss of the first micro-batch, with the number and with twice the number, in
    evaluation mode and without gradients. Where that is 0 or not finite (no label counts), the next update's may tell.
    Random state, gradients and batch statistics are left alone.
    """

    args: Any
    model: Any
    replaces_loss: bool  # of MethodMixin
    evaluation_context: Callable[[dict[str, Any]], AbstractContextManager[Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loss_is_probed = False
        super().__init__(*args, **kwargs)

    # ---------------------------------------------------------------------------------------------- terms
    def add_mean_term(self, loss: Tensor, term: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """`loss + term` where `term` is a mean over the micro-batch and `loss` is what `super().compute_loss` made.

        Trainer divides the sum by the accumulation steps unless the loss was normalised by `num_items_in_batch`; the
        term has to be divided either way.
        """
        steps = self.current_gradient_accumulation_steps
        return loss + (term / steps if self._is_normalised(num_items_in_batch) else term)

    def add_sum_term(self, loss: Tensor, term: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """`loss + term` where the update's loss is to contain the sum of the terms of all micro-batches and processes.

        Neither the accumulation steps nor DDP's averaging over processes divide the term.
        """
        return loss + term * self.sum_scale(num_items_in_batch)

    def sum_scale(self, num_items_in_batch: Tensor | int | None) -> int:
        """Factor of a part of a sum over the update, of which Trainer and DDP take means; see `add_sum_term`."""
        steps = 1 if self._is_normalised(num_items_in_batch) else self.current_gradient_accumulation_steps
        return steps * self.accelerator.num_processes

    def _is_normalised(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether what `super().compute_loss` makes is meant for the whole update, as Trainer sees it."""
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return by_model or self.compute_loss_func is not None

    # ---------------------------------------------------------------------------------------------- the model's own
    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        samples, num_items = super().get_batch_samples(*args, **kwargs)
        if samples and num_items is not None and not self._loss_is_probed:
            factors, number = self._factors_of_a_mean(), torch.as_tensor(num_items, device=self.args.device)
            ignores = self._ignores_number(samples[0], number) if factors else False
            self._loss_is_probed = ignores is not None
            if ignores:
                self._warn_of_factors(factors)
        return samples, num_items

    def _factors_of_a_mean(self) -> dict[str, int]:
        """What Trainer multiplies a loss by that is a mean, if it takes it for a sum over `num_items_in_batch`."""
        own = self.replaces_loss or self.compute_loss_func is not None or self.label_smoother is not None
        if own or not self.model_accepts_loss_kwargs or self.loss_is_scaled_for_ga:
            return {}
        factors = {}
        if self.args.average_tokens_across_devices:
            factors["processes"] = self.args.n_gpu if self.args.n_gpu > 1 else self.accelerator.num_processes
        if self.loss_is_scaled_for_ga is None:
            factors["gradient_accumulation_steps"] = self.args.gradient_accumulation_steps
        return {name: factor for name, factor in factors.items() if factor > 1}

    def _ignores_number(self, batch: dict[str, Any], number: Tensor) -> bool | None:
        """Whether the model's loss stays the same, and what this Trainer's `compute_loss` makes of it too.

        The same in all processes, which run a sharded model together; None if no process's loss tells.
        """
        model = model_of(self)

        def of_model(inputs: dict[str, Any], number: Tensor) -> Any:
            outputs = model(**inputs, num_items_in_batch=number)
            return outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]

        def of_trainer(inputs: dict[str, Any], number: Tensor) -> Any:
            return self.compute_loss(model, dict(inputs), num_items_in_batch=number)

        with (
            evaluation_mode(self.model),
            same_randomness(self.args.device),
            self.evaluation_context(batch),
            self.compute_loss_context_manager(),
            torch.no_grad(),
        ):
            inputs = self._prepare_inputs(batch)
            ignores: bool | None = None
            for loss_of in (of_model, of_trainer):  # the model first: a Trainer's own may keep records
                found = [_is_unchanged(loss_of, inputs, number)]
                found = gather_object(found) if self.accelerator.num_processes > 1 else found
                ignores = next((value for value in (False, True) if value in found), None)
                if not ignores:
                    break
            return ignores

    def _warn_of_factors(self, factors: dict[str, int]) -> None:
        if not self.is_world_process_zero():
            return
        product = " and ".join(f"{factor} ({name})" for name, factor in factors.items())
        or_option = ", or average_tokens_across_devices=False" if list(factors) == ["processes"] else ""
        warnings.warn(
            f"num_items_in_batch: found a {type(base_model(self.model)).__name__} whose forward takes it and whose "
            f"loss does not depend on it: transformers' Trainer multiplies its loss and gradient by {product}. What "
            f"mends it is model.accepts_loss_kwargs = False before the Trainer is made{or_option}",
            stacklevel=2,
        )


def _is_unchanged(
    loss_of: Callable[[dict[str, Any], Tensor], Any], inputs: dict[str, Any], number: Tensor
) -> bool | None:
    """Whether a loss stays the same with twice the number; None if it is zero or not finite, which does not tell."""
    try:
        one, other = (float(loss_of(inputs, factor * number).mean()) for factor in (1, 2))
    except Exception:  # whatever cannot be done here, the step that follows says so, or does it in its own way
        return False
    tells = math.isfinite(one) and one != 0
    return abs(one - other) <= _UNCHANGED * abs(one) if tells else None
