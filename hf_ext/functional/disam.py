"""DISAM: Domain-Inspired Sharpness-Aware Minimization (Zhang et al., ICLR 2024, arXiv:2405.18861).

Symbols: N samples with losses l_i and domains d_i; M domains present, domain m with n_m samples and mean loss L_m.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32


def domain_sums(losses: Tensor, domain_ids: Tensor, *, num_domains: int) -> tuple[Tensor, Tensor]:
    """Sum of losses and number of samples of every domain; these can be added over micro-batches and processes.

    Args:
        losses: `[N]`.
        domain_ids: int64 `[N]` in `[0, num_domains)`.
        num_domains: length of the result.

    Returns:
        Sums and counts, each `[num_domains]`, of the losses' dtype (at least float32).
    """
    losses = at_least_float32(losses)
    zeros = losses.new_zeros(num_domains)
    return (
        zeros.index_add(0, domain_ids, losses),
        zeros.index_add(0, domain_ids, torch.ones_like(losses)),
    )


def domain_mean_losses(losses: Tensor, domain_ids: Tensor) -> Tensor:
    """Mean loss of every domain that is present, `L_m = 1/n_m sum_{d_i = m} l_i`.

    Args:
        losses: `[N]`.
        domain_ids: int64 `[N]`, any integers.

    Returns:
        `[M]`, by ascending id, at least float32.
    """
    present, index = torch.unique(domain_ids, return_inverse=True)
    sums, counts = domain_sums(losses, index, num_domains=len(present))
    return sums / counts


def disam_ascent_loss(losses: Tensor, domain_ids: Tensor, *, lambda_: float) -> Tensor:
    """What the weights are perturbed along, `L_avg - lambda Var_m(L_m)`.

    `L_avg` is the mean over samples, `Var` the population variance over the domains present. With one domain, or
    `lambda_ = 0`, it is the loss of SAM.

    Args:
        losses: `[N]`.
        domain_ids: int64 `[N]`, any integers.
        lambda_: weight of the variance.

    Returns:
        Scalar, at least float32.
    """
    means = domain_mean_losses(losses, domain_ids)
    return at_least_float32(losses).mean() - lambda_ * means.var(correction=0)


def domain_variance_weights(means: Tensor, counts: Tensor, *, lambda_: float) -> Tensor:
    """What one sample of every domain weighs in the gradient of `-lambda Var_m(L_m)`.

    `v_m = -(2 lambda / (M n_m)) (L_m - 1/M sum_m' L_m')`, so that `sum_i v_{d_i} l_i` has that gradient with `v` held
    fixed: no second-order term appears, and the weights can be had before anything is differentiated.

    Args:
        means: `L_m`, `[D]`; whatever stands where a domain is absent does not count.
        counts: `n_m`, `[D]`, 0 where a domain is absent.
        lambda_: weight of the variance.

    Returns:
        `[D]`, detached, 0 where a domain is absent.
    """
    means, counts = at_least_float32(means).detach(), counts.detach()
    present = counts > 0
    number = present.sum().clamp(min=1)
    means = means.where(present, 0)
    apart = (means - means.sum() / number).where(present, 0)
    return -2 * lambda_ / number * apart / counts.clamp(min=1)


def disam_sample_weights(losses: Tensor, domain_ids: Tensor, *, lambda_: float) -> Tensor:
    """What every sample weighs in the ascent gradient, `c_i = 1/N + v_{d_i}`.

    `sum_i c_i l_i` has the gradient of `disam_ascent_loss`. With a large `lambda_` weights can be negative.

    Args:
        losses: `[N]`.
        domain_ids: int64 `[N]`, any integers.
        lambda_: weight of the variance.

    Returns:
        `[N]`, detached, at least float32.
    """
    present, index = torch.unique(domain_ids, return_inverse=True)
    sums, counts = domain_sums(losses.detach(), index, num_domains=len(present))
    weights = domain_variance_weights(sums / counts, counts, lambda_=lambda_)
    return 1 / len(losses) + weights[index]


def sam_perturbation(
    params: Sequence[Tensor], grads: Sequence[Tensor], *, rho: float, adaptive: bool = False
) -> list[Tensor]:
    """The step of length `rho` that raises the loss most, `eps = rho g / (||g|| + 1e-12)`, one norm over all tensors.

    Adaptive (ASAM, Kwon et al. 2021): `eps = rho w^2 g / (|| |w| g || + 1e-12)`. The result does not depend on the
    gradient's scale, so gradients that a loss scaler has scaled can be given as they are.

    Args:
        params: weights `w`; only their values count, and only if `adaptive`.
        grads: gradients `g`, of the same shapes.
        rho: length of the step.
        adaptive: measure the step relative to the weights.

    Returns:
        One tensor for every parameter, of its gradient's dtype and device.
    """
    params, grads = [param.detach() for param in params], [grad.detach() for grad in grads]
    if not grads:
        return []
    if adaptive:
        grads = list(torch._foreach_mul(grads, torch._foreach_abs(params)))
    norms = [norm.to(grads[0].device) for norm in torch._foreach_norm(grads, dtype=_norm_dtype(grads))]
    scale = rho / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-12)
    if adaptive:
        grads = list(torch._foreach_mul(grads, torch._foreach_abs(params)))
    if len({(grad.dtype, grad.device) for grad in grads}) > 1:
        return [grad * scale.to(grad) for grad in grads]
    return list(torch._foreach_mul(grads, scale.to(grads[0])))


def sagm_perturbation(
    params: Sequence[Tensor], grads: Sequence[Tensor], *, rho: float, alpha: float, adaptive: bool = False
) -> list[Tensor]:
    """That of SAGM (Wang et al., CVPR 2023, arXiv:2303.03108, Eq. 7), `eps = (rho / ||g|| - alpha) g`.

    It does depend on the gradient's scale, unlike `sam_perturbation`, whose other arguments and result it has.

    Args:
        params, grads, rho, adaptive: as there.
        alpha: step against the gradient, which brings the gradients at `w` and at `w + eps` into line.
    """
    steps = sam_perturbation(params, grads, rho=rho, adaptive=adaptive)
    return [step - alpha * grad.detach() for step, grad in zip(steps, grads, strict=True)]


def sagm_descent(perturbed: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """What SAGM descends along: the mean of the gradients at `w + eps` and at `w`."""
    return [(one + other) / 2 for one, other in zip(perturbed, grads, strict=True)]


def gsam_descent(perturbed: Sequence[Tensor], grads: Sequence[Tensor], *, alpha: float) -> list[Tensor]:
    """What GSAM (Zhuang et al., ICLR 2022, arXiv:2203.08065, Alg. 1) descends along, `p - alpha g_orthogonal`.

    To first order, what is added lowers the surrogate gap, the perturbed loss minus the loss, and leaves the perturbed
    loss as it is.

    Args:
        perturbed: gradients `p` at `w + eps`.
        grads: gradients `g` at `w`, of which the part orthogonal to `p` is taken, over all tensors at once.
        alpha: its weight.
    """
    pairs = [(at_least_float32(p), at_least_float32(g)) for p, g in zip(perturbed, grads, strict=True)]
    along, size = sum((p * g).sum() for p, g in pairs), sum(p.square().sum() for p, _ in pairs)
    share = torch.as_tensor(along / (size + 1e-24))
    return [p - alpha * (g - share.to(p) * p) for p, g in zip(perturbed, grads, strict=True)]


def _norm_dtype(grads: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(grad.dtype == torch.float64 for grad in grads) else torch.float32
