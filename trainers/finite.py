"""Training that stops at the first update whose loss or gradient is not finite, before that changes anything."""

import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from transformers import Trainer

from hf_ext.trainers.losses import counts_labels

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


#: numbers of TrainingArguments that a step of the optimizer is made of
_OF_THE_UPDATE = ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm")


class NonFiniteError(FloatingPointError, ValueError):
    """A loss or gradient that is NaN or infinite: the arithmetic of a step, and a value of the data or the options."""


def batch_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers of BatchNorms and their kind, which a forward pass in training mode changes."""
    norms = (module for module in model.modules() if isinstance(module, _NormBase))
    return [buffer for module in norms for buffer in module.buffers()]


class FiniteMixin(_Base):
    """Every update's losses and its gradient are looked at before the optimizer is asked to step.

    What is seen is kept on the device and read once per update, after the gradient's norm, which Trainer computes in
    any case. With `logging_nan_inf_filter=True`, the default, Trainer itself waits for the device after every
    micro-batch, so that nothing else is waited for but the norm; with False this reading is the only one. N processes
    sum up one number per update, and stop together.

    A micro-batch of which no label counts (all -100) may have a mean loss of 0/0, as in any Trainer: its gradient is
    zero. With a loss scaler (fp16) a gradient may be infinite: the scaler then leaves the step out. A loss may not.
    DeepSpeed steps within the backward pass, and is stopped after that step.
    """

    args: Any
    model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._finite: dict[str, Tensor] = {}  # by name, whether all of this update is
        self._micro_batches_of_update: list[Any] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []  # and what they were before this update
        super().__init__(*args, **kwargs)
        self._check_numbers()

    def _check_numbers(self) -> None:
        """Refuse options of the update that would make weights of finite gradients that are not finite."""
        for name in _OF_THE_UPDATE:
            value = getattr(self.args, name, None)
            no_clipping = name == "max_grad_norm" and value == math.inf
            if isinstance(value, Real) and not math.isfinite(value) and not no_clipping:
                raise ValueError(f"{name}: found {value}, allowed are finite numbers")

    def expect(self, name: str, finite: Tensor) -> None:
        """Stop the training before the optimizer steps unless this scalar is true; no device is waited for."""
        self._finite[name] = self._finite[name] & finite if name in self._finite else finite

    def non_finite_advice(self) -> str:
        """What helps if the data are finite. Cooperative: `f"{super().non_finite_advice()}, or ..."`."""
        return "lower the learning rate or clip gradients (max_grad_norm), or train in float32"

    def step_in_words(self) -> str:
        """The update at hand, as an error names it. Cooperative."""
        return f"step {self.state.global_step + 1}"

    # ---------------------------------------------------------------------------------------------- an update
    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self._finite = {}
        samples, num_items = super().get_batch_samples(*args, **kwargs)
        self._micro_batches_of_update = samples
        self._statistics = [(buffer, buffer.clone()) for buffer in batch_statistics(self.model)]
        return samples, num_items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        counts = counts_labels(self, inputs)  # before a user's Trainer takes the labels out of them
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.expect("loss", loss.isfinite().all() | ~counts.to(loss.device))
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None and self.accelerator.scaler is None:
            of_all_shards = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            self.expect("gradient", torch.as_tensor(of_all_shards).isfinite().all())
        self._stop_unless_finite()
        return norm

    def _stop_unless_finite(self) -> None:
        if not self._finite:
            return
        flags = torch.stack([flag.to(self.args.device) for flag in self._finite.values()])
        faults = (~flags).sum()
        if self.accelerator.num_processes > 1:
            faults = self.accelerator.reduce(faults, reduction="sum")
        if faults.item():
            self._stop()

    # ---------------------------------------------------------------------------------------------- the error
    def _stop(self) -> NoReturn:
        """All processes come here together."""
        with torch.no_grad():
            for buffer, before in self._statistics:
                buffer.copy_(before)
        self.model.zero_grad()
        if hasattr(self.model_wrapped, "zero_grad"):
            self.model_wrapped.zero_grad()
        own = [name for name, flag in self._finite.items() if not bool(flag)]
        causes = self._causes()
        gathered = [(own, causes)]
        if self.accelerator.num_processes > 1:
            process = self.accelerator.process_index
            gathered = gather_object([(own, [f"{cause} of process {process}" for cause in causes])])
        names = sorted({name for own, _ in gathered for name in own}, key=lambda name: (name == "gradient", name))
        causes = [cause for _, causes in gathered for cause in causes]
        terms = [f"{value} for {name}" for name, value in self._recorded_means().items() if not math.isfinite(value)]
        raise NonFiniteError(
            f"the {' and the '.join(names)} {'are' if len(names) > 1 else 'is'} not finite in {self.step_in_words()}"
            + (f" (found {', '.join(terms)})" if terms else "")
            + "; weights and optimizer are those before it. "
            + (f"Not finite: {'; '.join(causes)}. Mend or leave out these" if causes else "")
            + ("" if causes else f"Nothing of weights and data is: {self.non_finite_advice()}")
        )

    def _causes(self) -> list[str]:
        """What of the weights, or else of the batches, is not finite."""
        broken = (name for name, weight in self.model.named_parameters() if not bool(weight.detach().isfinite().all()))
        if (name := next(broken, None)) is None:
            return _faults_of_batches(self._micro_batches_of_update)
        steps = self.state.global_step  # of which one may have been too large for the weights' dtype
        advice = f"as step {steps} left them ({self.non_finite_advice()})" if steps else "before any step"
        return [f"the model's weights {advice}, {name} first"]

    def _recorded_means(self) -> dict[str, float]:
        raise NotImplementedError  # of MethodMixin


def _faults_of_batches(batches: Iterable[Any]) -> list[str]:
    """Columns of the micro-batches with values that are not finite, and their first rows."""
    return [
        f"{name} in rows {', '.join(map(str, rows[:5]))} of micro-batch {number}"
        for number, batch in enumerate(batches)
        for name, rows in _rows_not_finite(batch)
    ]


def _rows_not_finite(batch: Any) -> Iterator[tuple[str, list[int]]]:
    for name, values in batch.items() if isinstance(batch, Mapping) else ():
        if isinstance(values, Mapping):
            yield from ((f"{name}/{inner}", rows) for inner, rows in _rows_not_finite(values))
        elif isinstance(values, Tensor) and values.is_floating_point() and values.ndim:
            rows = (~values.isfinite()).flatten(1).any(dim=1) if values.ndim > 1 else ~values.isfinite()
            if bool(rows.any()):
                yield name, rows.nonzero().flatten().tolist()
