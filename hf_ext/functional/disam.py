r"""DISAM, domain-inspired sharpness-aware minimization.

Zhang et al., "Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts", ICLR 2024,
https://arxiv.org/abs/2405.18861 (v1). The behaviour is that of the authors' code.

| symbol | argument | |
|---|---|---|
| `l_i`, `d_i` | `losses`, `domain_ids` | loss and domain of sample i of N |
| `L_m`, `n_m` | `means`, `counts` | mean loss and number of samples of domain m, of the M that are present |
| `lambda` | `lambda_` | weight of the variance |
| `w`, `g`, `rho` | `params`, `grads`, `rho` | weights, their gradient, length of the perturbation |

| equation | function |
|---|---|
| `L_m = 1/n_m sum_{d_i = m} l_i` | `domain_mean_losses`; `domain_means` of `domain_sums` over the parts of a batch |
| `Var_m(L_m) = 1/M sum_m (L_m - 1/M sum_m' L_m')^2` | `domain_variance` |
| `L_avg - lambda Var_m(L_m)`, which the perturbation ascends | `disam_ascent_loss` |
| its derivative by a sample's loss | `disam_sample_weights`, from `domain_variance_weights` |
| `eps = rho g / ||g||`; SAM: Foret et al., ICLR 2021, Eq. 2; ASAM: Kwon et al., ICML 2021 | `sam_perturbation` |
| SAGM: Wang et al., CVPR 2023, Eq. 7 | `sagm_perturbation`, `sagm_descent` |
| GSAM: Zhuang et al., ICLR 2022, Alg. 1 | `gsam_descent` |
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32

__all__ = [
    "disam_ascent_loss",
    "disam_sample_weights",
    "domain_mean_losses",
    "domain_means",
    "domain_sums",
    "domain_variance",
    "domain_variance_weights",
    "gsam_descent",
    "sagm_descent",
    "sagm_perturbation",
    "sam_perturbation",
]


# ------------------------------------------------------------------------------------------------ domains
def domain_sums(losses: Tensor, domain_ids: Tensor, *, num_domains: int) -> tuple[Tensor, Tensor]:
    """Sum of losses and number of samples of every domain; these can be added over micro-batches and processes.

    Args:
        losses: `[N]`.
        domain_ids: int64 `[N]` in `[0, num_domains)`.
        num_domains: D.

    Returns:
        Sums and counts, each `[D]`, of the losses' dtype (at least float32).
    """
    losses = at_least_float32(losses)
    zeros = losses.new_zeros(num_domains)
    return zeros.index_add(0, domain_ids, losses), zeros.index_add(0, domain_ids, torch.ones_like(losses))


def domain_mean_losses(losses: Tensor, domain_ids: Tensor) -> Tensor:
    """Mean loss of every domain that is present, `L_m`.

    Args:
        losses: `[N]`.
        domain_ids: int64 `[N]`, any integers.

    Returns:
        `[M]`, by ascending id, at least float32.
    """
    sums, counts, _ = _sums_of_present(losses, domain_ids)
    return domain_means(sums, counts)


def domain_means(sums: Tensor, counts: Tensor) -> Tensor:
    """`L_m` of sums and counts as `domain_sums` gives them, `[D]`; 0 where a domain is absent."""
    return sums / counts.clamp(min=1)


def _sums_of_present(losses: Tensor, domain_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums and counts of the domains that are present, `[M]`, and every sample's place among these, `[N]`."""
    present, index = torch.unique(domain_ids, return_inverse=True)
    return *domain_sums(losses, index, num_domains=len(present)), index


def domain_variance(means: Tensor, counts: Tensor) -> Tensor:
    """`Var_m(L_m)`, the population variance over the domains that are present.

    Args:
        means: `L_m`, `[D]`; whatever stands where a domain is absent does not count.
        counts: `n_m`, `[D]`, 0 where a domain is absent.

    Returns:
        Scalar, of the means' dtype; 0 without any domain.
    """
    deviation, number = _deviation(means, counts)
    return deviation.square().sum() / number


def _deviation(means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """`L_m - 1/M sum_m' L_m'`, `[D]`, 0 where a domain is absent, and M, at least 1."""
    present = counts > 0
    number = present.sum().clamp(min=1)
    means = means.where(present, 0)
    return (means - means.sum() / number).where(present, 0), number


# ------------------------------------------------------------------------------------------------ ascent
def disam_ascent_loss(
    losses: Tensor,
    domain_ids: Tensor,
    *,
    lambda_: float,
    average: Tensor | None = None,
    whole: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """What the perturbation ascends, `L_avg - lambda Var_m(L_m)`.

    With one domain, or `lambda_ = 0`, it is the loss of SAM.

    Args:
        losses: `[N]`.
        domain_ids: int64 `[N]`, any integers; with `whole`, in `[0, D)`.
        lambda_: weight of the variance.
        average: `L_avg`, where it is not the mean of `losses` (label smoothing, regularisers).
        whole: sums and counts of the domains' losses, each `[D]`, in all that these samples are a part of (the other
            micro-batches, the other processes). The variance is then that of the whole, and its gradient this part's
            share: the shares of all parts add up to the gradient of the whole.

    Returns:
        Scalar, at least float32.
    """
    losses = at_least_float32(losses)
    if whole is None:
        sums, counts, _ = _sums_of_present(losses, domain_ids)
    else:
        sums, counts = whole
        part, _ = domain_sums(losses, domain_ids, num_domains=len(sums))
        sums = sums + (part - part.detach())  # the value is the whole's, the gradient goes to this part
    average = losses.mean() if average is None else average
    return average - lambda_ * domain_variance(domain_means(sums, counts), counts)


def domain_variance_weights(means: Tensor, counts: Tensor, *, lambda_: float) -> Tensor:
    """The derivative of `-lambda Var_m(L_m)` by the loss of one sample of each domain.

    `v_m = -(2 lambda / (M n_m)) (L_m - 1/M sum_m' L_m')`.

    Args:
        means: `L_m`, `[D]`; whatever stands where a domain is absent does not count.
        counts: `n_m`, `[D]`, 0 where a domain is absent.
        lambda_: weight of the variance.

    Returns:
        `[D]`, detached, at least float32, 0 where a domain is absent.
    """
    deviation, number = _deviation(at_least_float32(means).detach(), counts)
    return -2 * lambda_ / number * deviation / counts.detach().clamp(min=1)


def disam_sample_weights(losses: Tensor, domain_ids: Tensor, *, lambda_: float) -> Tensor:
    """The derivative of `disam_ascent_loss` by every sample's loss, `c_i = 1/N + v_{d_i}`.

    So `sum_i c_i l_i` has the gradient of the ascent loss. With a large `lambda_` a weight can be negative.

    Args:
        losses: `[N]`.
        domain_ids: int64 `[N]`, any integers.
        lambda_: weight of the variance.

    Returns:
        `[N]`, detached, at least float32.
    """
    sums, counts, index = _sums_of_present(losses.detach(), domain_ids)
    return 1 / len(losses) + domain_variance_weights(domain_means(sums, counts), counts, lambda_=lambda_)[index]


# ------------------------------------------------------------------------------------------------ perturbation
def sam_perturbation(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    rho: float,
    adaptive: bool = False,
    total: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """The step of length `rho` that raises the loss most, `eps = rho g / (||g|| + 1e-12)`, one norm over all tensors.

    Adaptive (ASAM, Kwon et al. 2021): `eps = rho w^2 g / (|| |w| g || + 1e-12)`. The result does not depend on the
    gradient's scale, so gradients that a loss scaler has scaled can be given as they are.

    Args:
        params: weights `w`; only their values count, and only if `adaptive`.
        grads: gradients `g`, of the same shapes.
        rho: length of the step.
        adaptive: measure the step relative to the weights.
        total: where these are parts of the tensors, and others have the others (sharded weights): adds up a scalar
            over all parts.

    Returns:
        One tensor for every parameter, of its gradient's dtype and device.
    """
    params, grads = [param.detach() for param in params], [grad.detach() for grad in grads]
    if not grads:
        return []
    if adaptive:
        grads = list(torch._foreach_mul(grads, torch._foreach_abs(params)))
    norms = [norm.to(grads[0].device) for norm in torch._foreach_norm(grads, dtype=_norm_dtype(grads))]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    scale = rho / ((norm if total is None else total(norm.square()).sqrt()) + 1e-12)
    if adaptive:
        grads = list(torch._foreach_mul(grads, torch._foreach_abs(params)))
    if len({(grad.dtype, grad.device) for grad in grads}) > 1:
        return [grad * scale.to(grad) for grad in grads]
    return list(torch._foreach_mul(grads, scale.to(grads[0])))


def sagm_perturbation(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    rho: float,
    alpha: float,
    adaptive: bool = False,
    total: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """That of SAGM (Wang et al., CVPR 2023, arXiv:2303.03108, Eq. 7), `eps = (rho / ||g|| - alpha) g`.

    It does depend on the gradient's scale, unlike `sam_perturbation`, whose other arguments and result it has.

    Args:
        params, grads, rho, adaptive, total: as there.
        alpha: step against the gradient, which brings the gradients at `w` and at `w + eps` into line.
    """
    steps = sam_perturbation(params, grads, rho=rho, adaptive=adaptive, total=total)
    return [step - alpha * grad.detach() for step, grad in zip(steps, grads, strict=True)]


def sagm_descent(perturbed: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """What SAGM descends along: the mean of the gradients at `w + eps` and at `w`."""
    return [(one + other) / 2 for one, other in zip(perturbed, grads, strict=True)]


def gsam_descent(
    perturbed: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    alpha: float,
    total: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """What GSAM (Zhuang et al., ICLR 2022, arXiv:2203.08065, Alg. 1) descends along, `p - alpha g_orthogonal`.

    To first order, what is added lowers the surrogate gap, the perturbed loss minus the loss, and leaves the perturbed
    loss as it is.

    Args:
        perturbed: gradients `p` at `w + eps`.
        grads: gradients `g` at `w`, of which the part orthogonal to `p` is taken, over all tensors at once.
        alpha: its weight.
        total: as in `sam_perturbation`.
    """
    pairs = [(at_least_float32(p), at_least_float32(g)) for p, g in zip(perturbed, grads, strict=True)]
    along, size = sum((p * g).sum() for p, g in pairs), sum(p.square().sum() for p, _ in pairs)
    if total is not None and pairs:
        along, size = total(torch.stack([torch.as_tensor(along), torch.as_tensor(size)]))
    share = torch.as_tensor(along / (size + 1e-24))
    return [p - alpha * (g - share.to(p) * p) for p, g in zip(perturbed, grads, strict=True)]


def _norm_dtype(grads: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(grad.dtype == torch.float64 for grad in grads) else torch.float32
