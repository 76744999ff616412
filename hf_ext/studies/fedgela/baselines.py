"""Baselines of FedGELA at a client: FedRS, a restricted softmax; FedBABU, a head that nobody trains."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_ext._models import base_model
from hf_ext.trainers.federated.fedgela.class_counts import as_counts, counts_of_labels
from hf_ext.trainers.federated.rounds import FederatedMixin


class RestrictedSoftmaxMixin(FederatedMixin):
    """FedRS (Li & Zhan, KDD 2021): in training the logits of classes that the client lacks are scaled by alpha.

    Evaluation is that of the global model. With `alpha=1` training is the wrapped Trainer's, bit for bit.

    Args:
        alpha: from 0 to 1; the paper's 0.5 by default.
        head: name of the module that gives the logits.
        class_counts: samples of every class at this client, `[C]`; by default counted in `train_dataset`.

    Raises:
        ValueError: another alpha, or labels that are no classes of the head.
    """

    model: Any

    def __init__(
        self,
        *args: Any,
        alpha: float = 0.5,
        head: str = "classifier",
        class_counts: Sequence[float] | Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: found {alpha}, allowed are numbers in [0, 1]")
        self.alpha, self.head, self._class_counts = alpha, head, class_counts
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train with the restricted softmax, and leave the model without it."""
        model = base_model(self.model)
        given, classes = self._class_counts, model.config.num_labels
        counts = counts_of_labels(self.train_dataset, classes) if given is None else as_counts(given, classes)
        scale = torch.where(counts > 0, 1.0, self.alpha)
        handle = model.get_submodule(self.head).register_forward_hook(lambda head, _, out: _scaled(head, out, scale))
        try:
            return super().train(*args, **kwargs)
        finally:
            handle.remove()


def _scaled(head: nn.Module, logits: Tensor, scale: Tensor) -> Tensor:
    return logits * scale.to(logits.device, logits.dtype) if head.training else logits


def freeze_head(model: nn.Module, head: str = "classifier") -> nn.Module:
    """FedBABU (Oh et al., ICLR 2022): the head stays as it was drawn, the same at all clients; the rest is trained."""
    model.get_submodule(head).requires_grad_(False)
    return model
