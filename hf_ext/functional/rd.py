r"""RD, reprogramming distillation: a frozen teacher's features made fit for a student's task.

Zhou et al., "Reprogramming Distillation for Medical Foundation Models", MICCAI 2024, https://arxiv.org/abs/2407.06504.
Neither the paper's full text nor its code could be had: written from the abstract and public summaries.

| symbol | argument | |
|---|---|---|
| `s_i in R^D` | `student` | the student's features of sample i of B |
| `r_i = phi(t_i) in R^D` | `reprogrammed` | the teacher's, after a small trainable module phi |
| `y_i` | `labels` | its class |
| `g` | `classifier_weight`, `classifier_bias` | the linear classifier that both share; its outputs, `..._logits` |
| `alpha`, `gamma`, `beta`, `tau` | the same, `temperature` | weights of the terms; temperature of the divergence |

| equation (no numbers) | function |
|---|---|
| `L = CE(g(s), y) + alpha CE(g(r), y) + gamma L_CKA + beta L_KL` | `rd_losses_of_logits`; of features, `rd_losses` |
| `CKA = HSIC(r, s) / sqrt(HSIC(r, r) HSIC(s, s))`: Kornblith et al., ICML 2019 | `linear_cka` |
| `L_CKA = -CKA(r, s)` | `cka_loss` |
| `L_KL = tau^2 KL(softmax(g(r) / tau) || softmax(g(s) / tau))`: Hinton et al., 2015 | `distillation_kl` |
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32

__all__ = ["cka_loss", "distillation_kl", "linear_cka", "rd_losses", "rd_losses_of_logits"]


# ------------------------------------------------------------------------------------------------ alignment
def linear_cka(x: Tensor, y: Tensor, *, debiased: bool = False) -> Tensor:
    r"""Centred kernel alignment with linear kernels, `HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y))`.

    Biased (Kornblith et al., 2019, https://arxiv.org/abs/1905.00414):
    `||Xc^T Yc||_F^2 / (||Xc^T Xc||_F ||Yc^T Yc||_F)` with centred columns, in [0, 1]; near 1 also for independent
    features if they are wider than the batch. Debiased: with the unbiased HSIC of Song et al. (2012, JMLR 13),
    around 0 for independent ones.

    Args:
        x: `[B, D1]`.
        y: `[B, D2]`.
        debiased: see above; needs B >= 4.

    Returns:
        Scalar, at least float32. NaN where it is undefined: B = 1, all rows alike (to rounding), for the debiased one
        B < 4 or an estimate of HSIC(x, x) or HSIC(y, y) that is not positive.

    Raises:
        ValueError: shapes that do not fit.
    """
    value, defined = _cka(x, y, debiased)
    return torch.where(defined, value, float("nan"))


def cka_loss(reprogrammed: Tensor, student: Tensor, *, debiased: bool = False) -> Tensor:
    r"""`-CKA(r, s)`; exactly 0, without a gradient, where that is undefined. Arguments as in `linear_cka`."""
    value, _ = _cka(reprogrammed, student, debiased)
    return -value


def _cka(x: Tensor, y: Tensor, debiased: bool) -> tuple[Tensor, Tensor]:
    """The alignment, 0 where it is undefined, and whether it is defined."""
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"x, y: found shapes {tuple(x.shape)} and {tuple(y.shape)}, allowed are [B, D1] and [B, D2] with B > 0"
        )
    with torch.autocast(x.device.type, enabled=False):
        x, y = at_least_float32(x), at_least_float32(y)
        y = y.to(x.dtype)
        xc, yc = x - x.mean(0), y - y.mean(0)
        varies = _varies(x, xc) & _varies(y, yc)
        if debiased and len(x) < 4:
            varies = torch.zeros_like(varies)
        # rows that do not vary would be 0/0; the gradient of what `where` leaves out has to be finite too
        xc, yc = torch.where(varies, xc, 0.0), torch.where(varies, yc, 0.0)
        if debiased:
            xy, xx, yy = _unbiased_hsic(xc, yc)
        else:
            xy, xx, yy = _biased_hsic(xc, yc)
        defined = varies & (xx > 0) & (yy > 0)
        scale = (torch.where(defined, xx, 1.0) * torch.where(defined, yy, 1.0)).sqrt()
        return torch.where(defined, xy / scale, 0.0), defined


def _varies(x: Tensor, centred: Tensor) -> Tensor:
    """Whether the centred columns are more than rounding: `||Xc^T Xc|| > tolerance * ||X^T X||`, by their traces."""
    tolerance = 1e-12 if x.dtype == torch.float64 else 1e-6
    return centred.detach().square().sum() > tolerance * x.detach().square().sum()


def _biased_hsic(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Up to a factor, from centred features or from their Gram matrices, whichever are smaller."""
    rows, dx, dy = len(x), x.shape[1], y.shape[1]
    if dx * dy + dx * dx + dy * dy <= rows * (dx + dy):
        return (x.T @ y).square().sum(), (x.T @ x).square().sum(), (y.T @ y).square().sum()
    k, m = x @ x.T, y @ y.T
    return (k * m).sum(), k.square().sum(), m.square().sum()


def _unbiased_hsic(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Up to a factor, the estimator of Song et al. (2012); zeros for fewer than four rows."""
    rows = len(x)
    if rows < 4:
        zero = (x.sum() + y.sum()) * 0
        return zero, zero, zero
    k, m = ((z @ z.T).fill_diagonal_(0) for z in (x, y))

    def estimate(k: Tensor, m: Tensor) -> Tensor:
        sums = k.sum() * m.sum() / ((rows - 1) * (rows - 2)) - 2 / (rows - 2) * (k.sum(0) * m.sum(0)).sum()
        return (k * m).sum() + sums

    return estimate(k, m), estimate(k, k), estimate(m, m)


# ------------------------------------------------------------------------------------------------ losses
def distillation_kl(teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""`tau^2 KL(softmax(z_teacher / tau) || softmax(z_student / tau))`, mean over samples.

    No gradient goes to the teacher. Hinton et al., 2015, https://arxiv.org/abs/1503.02531.

    Args:
        teacher_logits, student_logits: `[B, C]`.
        temperature: tau > 0.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: tau is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: found {temperature!r}, allowed are numbers > 0")
    teacher, student = (
        F.log_softmax(at_least_float32(z) / temperature, dim=-1) for z in (teacher_logits.detach(), student_logits)
    )
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def rd_losses(
    reprogrammed: Tensor,
    student: Tensor,
    labels: Tensor,
    classifier_weight: Tensor,
    classifier_bias: Tensor | None,
    *,
    alpha: float = 1.0,
    gamma: float = 1.0,
    beta: float = 0.0,
    temperature: float = 1.0,
    detach_reprogrammed: bool = False,
    debiased: bool = False,
) -> dict[str, Tensor]:
    r"""`CE(g(s), y) + alpha CE(g(r), y) - gamma CKA(r, s) + beta tau^2 KL(g(r) || g(s))`.

    Args:
        reprogrammed: r, `[B, D]`.
        student: s, `[B, D]`.
        labels: y, int64 `[B]`.
        classifier_weight, classifier_bias: of g, `[C, D]` and `[C]` or None.
        alpha, gamma, beta, temperature: weights and tau.
        detach_reprogrammed: the alignment moves the student only.
        debiased: the alignment is the debiased one.

    Returns:
        Scalars `"student"`, `"reprogrammed"`, `"cka"` (the loss, -CKA), `"kl"`, `"total"`, at least float32.

    Raises:
        ValueError: widths that do not fit the classifier.
    """
    if not reprogrammed.shape[-1] == student.shape[-1] == classifier_weight.shape[-1]:
        raise ValueError(
            f"reprogrammed, student: found the widths {reprogrammed.shape[-1]} and {student.shape[-1]}, allowed is "
            f"that of the shared classifier, {classifier_weight.shape[-1]}"
        )
    return rd_losses_of_logits(
        F.linear(student, classifier_weight, classifier_bias),
        F.linear(reprogrammed, classifier_weight, classifier_bias),
        labels,
        reprogrammed,
        student,
        alpha=alpha,
        gamma=gamma,
        beta=beta,
        temperature=temperature,
        detach_reprogrammed=detach_reprogrammed,
        debiased=debiased,
    )


def rd_losses_of_logits(
    student_logits: Tensor,
    reprogrammed_logits: Tensor,
    labels: Tensor,
    reprogrammed: Tensor,
    student: Tensor,
    *,
    alpha: float = 1.0,
    gamma: float = 1.0,
    beta: float = 0.0,
    temperature: float = 1.0,
    detach_reprogrammed: bool = False,
    debiased: bool = False,
    label_smoothing: float = 0.0,
    share: float = 1.0,
) -> dict[str, Tensor]:
    r"""`rd_losses` where the classifier's outputs are there already, whatever the classifier is.

    The features serve the alignment alone: they may be those of more samples, of all processes for example.

    Args:
        student_logits, reprogrammed_logits: g(s) and g(r), `[B, C]`.
        labels: y, int64 `[B]`.
        reprogrammed, student: r and s, `[N, D]`.
        alpha, gamma, beta, temperature, detach_reprogrammed, debiased: as in `rd_losses`.
        label_smoothing: share of the two cross-entropies' targets that is spread over all classes.
        share: factor of what are means over the samples, that is of all but the alignment, where these are a part of
            a batch that is larger or smaller than others which a mean is taken with.

    Returns:
        As `rd_losses`. A term whose weight is 0 is no part of the total's graph.
    """
    target = reprogrammed.detach() if detach_reprogrammed else reprogrammed
    entropies = (
        share * F.cross_entropy(at_least_float32(logits), labels, label_smoothing=label_smoothing)
        for logits in (student_logits, reprogrammed_logits)
    )
    terms = {
        **dict(zip(("student", "reprogrammed"), entropies, strict=True)),
        "cka": cka_loss(target, student, debiased=debiased),
        "kl": share * distillation_kl(reprogrammed_logits, student_logits, temperature=temperature),
    }
    weights = {"student": 1.0, "reprogrammed": alpha, "cka": gamma, "kl": beta}
    total = torch.stack([weights[name] * value for name, value in terms.items() if weights[name]]).sum()
    return {**terms, "total": total}
