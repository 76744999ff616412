"""Only the weights that matter to the data to forget may change: weight saliency, for any way to forget.

SalUn (Fan et al., ICLR 2024, arXiv:2310.12508).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hf_ext.functional import per_sample_losses, saliency_masks
from hf_ext.trainers.losses import logits_of, shifts_labels
from hf_ext.trainers.processes import average_over_processes, model_of
from hf_ext.trainers.tarf.identification import row_batches
from hf_ext.trainers.tarf.paired import PairedMixin

_PREFIX = "tarf_salient_"


class SaliencyMixin(PairedMixin):
    """With `tarf_saliency` below 1 a step changes that share of the trainable weights and no others.

    They are those with the largest gradients of the loss on `forget_dataset` at the original weights. Gradients of the
    others become zero; an optimizer with weight decay still moves them.
    """

    forget_dataset: Any
    _masks: dict[str, Tensor] | None = None

    def check_arguments(self) -> None:
        super().check_arguments()
        if self.args.tarf_saliency is None or self.train_dataset is None:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            name = "FSDP" if self.is_fsdp_enabled else "DeepSpeed"
            raise ValueError(f"tarf_saliency: found {name}, allowed are weights that are not sharded")
        if self.forget_dataset is None:
            raise ValueError("forget_dataset: found none with tarf_saliency, allowed is one that says what is salient")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, with hooks on the weights' gradients that are gone afterwards."""
        self._hooks: list[Any] = []
        try:
            return super().train(*args, **kwargs)
        finally:
            for hook in self._hooks:
                hook.remove()
            self._masks = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.tarf_saliency is not None and not self._hooks:
            if self._masks is None:
                if self.state.global_step > 0:
                    raise ValueError(
                        "resume_from_checkpoint: found no weights' saliency, allowed is a checkpoint of a run with "
                        "tarf_saliency"
                    )
                self._masks = self._measure()
            weights = dict(self.model.named_parameters())
            for name, mask in self._masks.items():
                hook = partial(torch.mul, mask.to(weights[name].device))
                self._hooks.append(weights[name].register_hook(hook))
        return super().get_batch_samples(*args, **kwargs)

    def _measure(self) -> dict[str, Tensor]:
        model = model_of(self)
        for counts, inputs in row_batches(self, self.forget_dataset):
            with self.compute_loss_context_manager():
                logits = logits_of(model(**inputs))
                losses = per_sample_losses(logits, inputs["labels"], shift_labels=shifts_labels(self))
            (losses.sum() * counts).backward()
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in weights.values()]
        if self.accelerator.num_processes > 1:
            average_over_processes(gradients)
        masks = saliency_masks(gradients, share=self.args.tarf_saliency)
        model.zero_grad()
        return dict(zip(weights, masks, strict=True))

    def checkpoint_state(self) -> dict[str, Any]:
        return super().checkpoint_state() | {_PREFIX + name: mask for name, mask in (self._masks or {}).items()}

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        super().load_checkpoint_state(state)
        masks = {name.removeprefix(_PREFIX): mask for name, mask in state.items() if name.startswith(_PREFIX)}
        self._masks = masks or None
