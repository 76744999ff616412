"""How steeply a loss rises around the weights: what a perturbation during training is meant to lower."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def sharpness(
    loss: Callable[[], Tensor],
    params: Sequence[Tensor],
    *,
    along: float,
    around: float,
    directions: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """How much a loss rises when weights are moved by a step of one length; they are put back, bit for bit.

    Args:
        loss: of the weights as they are, a scalar with gradients.
        params: the weights that are moved, as one vector.
        along: length of the step along the gradient.
        around: length of a step in a random direction.
        directions: how many of these are drawn; the rise is the mean over them.
        seed: of these.

    Returns:
        The rises, `along` and `around`.
    """
    before = [param.detach().clone() for param in params]
    start = loss()
    gradient = torch.autograd.grad(start, list(params), allow_unused=True)
    steps = [[torch.zeros_like(one) if grad is None else grad for one, grad in zip(params, gradient, strict=True)]]
    generator = torch.Generator().manual_seed(seed)
    steps += [[torch.randn(one.shape, generator=generator).to(one) for one in params] for _ in range(directions)]
    lengths = [along, *[around] * directions]
    with torch.no_grad():
        ends = [_loss_at(loss, params, before, step, length) for step, length in zip(steps, lengths, strict=True)]
    rises = [float(end - start.detach()) for end in ends]
    return {"along": rises[0], "around": sum(rises[1:]) / max(directions, 1)}


def _loss_at(
    loss: Callable[[], Tensor],
    params: Sequence[Tensor],
    before: Sequence[Tensor],
    step: Sequence[Tensor],
    length: float,
) -> Tensor:
    norm = torch.stack([one.norm() for one in step]).norm().clamp(min=torch.finfo(torch.float32).tiny)
    for param, start, direction in zip(params, before, step, strict=True):
        param.copy_(start + length * direction / norm)
    value = loss()
    for param, start in zip(params, before, strict=True):
        param.copy_(start)
    return value
