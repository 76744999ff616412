"""What a federation adds to a client's gradients, once per update: terms of FedProx, FedDyn and SCAFFOLD."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hf_ext.functional import proximal_correction


class Correction(Protocol):
    """A term of the gradient that depends on the weights alone; `weight` times its tensors are added."""

    @property
    def name(self) -> str:
        """Under `<name>_norm` the length of the tensors is logged."""

    @property
    def weight(self) -> float: ...

    def term(self, params: Sequence[Tensor]) -> list[Tensor]:
        """One tensor for every parameter, given the parameters as they are."""


@dataclass(frozen=True)
class Proximal:
    """FedProx's `w - w_t`; with controls `h_i` FedDyn's `w - w_t + h_i`."""

    weight: float
    received: Sequence[Tensor]
    control: Sequence[Tensor] | None = None
    name: str = "proximal"

    def term(self, params: Sequence[Tensor]) -> list[Tensor]:
        return proximal_correction(params, self.received, self.control)


@dataclass(frozen=True)
class Drift:
    """SCAFFOLD's `c - c_i`, the same for all weights."""

    weight: float
    correction: list[Tensor]
    name: str = "control"

    def term(self, params: Sequence[Tensor]) -> list[Tensor]:
        return self.correction


@torch.no_grad()
def add_to_gradients(params: Sequence[Tensor], term: Sequence[Tensor], *, weight: float) -> None:
    """Add `weight` times a term to the gradients, in their own dtypes.

    A parameter that has no gradient, since nothing of this update has used it, gets one: the term is a part of the
    gradient of every parameter.
    """
    grads: list[Tensor] = []
    for param in params:
        param.grad = torch.zeros_like(param) if param.grad is None else param.grad
        grads.append(param.grad)
    torch._foreach_add_(grads, list(term), alpha=weight)
