r"""DivBS, diversified batch selection: the k of B candidates whose gradients span most of the batch's gradient.

Hong et al., "Diversified Batch Selection for Training Acceleration", ICML 2024, https://arxiv.org/abs/2406.04872.
Written from the abstract, public summaries and the authors' code; the numbers of the paper's equations are not known.

| symbol | argument | |
|---|---|---|
| `h_i in R^d` | `features` | input of the last linear layer for candidate i of B |
| `a_i in R^C` | `residuals` | derivative of its loss by the C outputs of that layer |
| `g_i = vec(a_i outer h_i)` | | gradient of its loss by that layer's weights; never formed |
| `gbar` | | mean of all g_i |
| `k` | `k` | how many are selected |
| `e_t`, `alpha_t` | | direction that pick t adds, and what it captures of gbar; `u(v) = v / ||v||` |
| `A`, `H`, `R_1`, `R_2` | `projections` | a and h of a sequence's tokens, and random projections of them |

| equation (no numbers) | function |
|---|---|
| `a = softmax(z) - onehot(y)` | `logit_residuals` |
| t-th pick i: `e_t = u(g_i - sum_{s<t} <g_i, e_s> e_s)`, `alpha_t = <e_t, gbar>` | `divbs_select_with_info` |
| its rule: largest `|<g_i^perp, gbar>|`, or that over `||g_i^perp||` | the same; indices alone, `divbs_select` |
| captured share `sum_t alpha_t^2 / ||gbar||^2` | its `DivBSInfo` |
| `<g_i, g_j> = <a_i, a_j> <h_i, h_j>` | within; given as a matrix, `divbs_select_gram` |
| `||g_i|| = ||a_i|| ||h_i||`, the baseline that selects by gradient norm | `gradient_norms` |
| of sequences `G_n = sum_t a_t outer h_t` (not in the paper) | `sequence_gradients` |
| in its place `vec((A R_1)^T (H R_2))`; or means of a and of h | `sequence_sketch`; `sequence_means` |
| `R_1`, `R_2` with `E[R R^T] = 1` | `sketch_projections` |

With these inner products Gram-Schmidt on the g_i is a pivoted Cholesky factorisation of their matrix, of which one
column per pick is needed.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32
from hf_ext.functional.losses import IGNORED_LABEL

__all__ = [
    "DivBSInfo",
    "divbs_select",
    "divbs_select_gram",
    "divbs_select_with_info",
    "gradient_norms",
    "logit_residuals",
    "sequence_gradients",
    "sequence_means",
    "sequence_sketch",
    "sketch_projections",
]

Rule = Literal["residual", "projection"]
Draw = Literal["argmax", "sample"]

#: the factor L, `[k, B]`, is kept in float64 up to this many numbers (128 MiB)
_LARGEST_IN_FLOAT64 = 2**24
#: what counts as zero: of the largest ||g_i||^2, of the first largest score
_TOLERANCES = {torch.float64: (1e-10, 1e-9), torch.float32: (1e-5, 1e-4)}
#: scores this close are a tie, which the lowest index wins whatever the order of summation was
_TIE = {torch.float64: 1e-12, torch.float32: 1e-6}


class DivBSInfo(NamedTuple):
    """What a selection achieved, as tensors on its device.

    Args:
        captured_fraction: scalar, `sum_t alpha_t^2 / ||gbar||^2` in [0, 1]; 1 if gbar is 0.
        num_greedy: int64 scalar; the other picks are drawn uniformly, since no direction was left.
    """

    captured_fraction: Tensor
    num_greedy: Tensor


# ------------------------------------------------------------------------------------------------ residuals
def logit_residuals(
    logits: Tensor,
    labels: Tensor,
    *,
    problem: Literal["classification", "multi_label", "regression"] = "classification",
) -> Tensor:
    r"""`a = dl/dz`, the derivative of a sample's loss by the logits.

    Cross-entropy: `softmax(z) - onehot(y)`. Multi-label (binary cross-entropy, mean over C): `(sigmoid(z) - y) / C`.
    Regression (squared error, mean over C): `2 (z - y) / C`.

    Args:
        logits: z, `[B, C]` or `[..., C]`.
        labels: int `[B]` (`[...]`) for classification, where -100 gives a row of zeros; otherwise of z's shape.
        problem: see above.

    Returns:
        z's shape, at least float32.

    Raises:
        ValueError: an unknown problem, labels of another shape or type, or (on the CPU) a class out of range.
    """
    logits = at_least_float32(logits)
    if problem in ("multi_label", "regression"):
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels: found shape {tuple(labels.shape)}, allowed is the logits' {tuple(logits.shape)}"
            )
        targets = labels.to(logits.dtype)
        errors = 2 * (logits - targets) if problem == "regression" else logits.sigmoid() - targets
        return errors / logits.shape[-1]
    if problem != "classification":
        raise ValueError(f"problem: found {problem!r}, allowed are 'classification', 'multi_label' and 'regression'")
    if labels.shape != logits.shape[:-1] or labels.is_floating_point():
        raise ValueError(
            f"labels: found {labels.dtype} of shape {tuple(labels.shape)}, allowed are integers of shape "
            f"{tuple(logits.shape[:-1])}"
        )
    labelled = labels.ne(IGNORED_LABEL)
    classes = labels.where(labelled, 0)
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        low, high = (int(bound) for bound in torch.aminmax(classes))
        if low < 0 or high >= logits.shape[-1]:
            raise ValueError(f"labels: found {low} to {high}, allowed are 0 to {logits.shape[-1] - 1} and -100")
    residuals = logits.softmax(dim=-1).scatter_add(-1, classes.unsqueeze(-1), -torch.ones_like(logits[..., :1]))
    return residuals * labelled.unsqueeze(-1)


def gradient_norms(residuals: Tensor, features: Tensor) -> Tensor:
    """`||g_i|| = ||a_i|| ||h_i||`, the score of selection by gradient norm: `[B, C]`, `[B, d]` -> `[B]`."""
    return at_least_float32(residuals).norm(dim=1) * at_least_float32(features).norm(dim=1)


# ------------------------------------------------------------------------------------------------ selection
def divbs_select(
    residuals: Tensor,
    features: Tensor,
    k: int,
    *,
    rule: Rule = "residual",
    draw: Draw = "argmax",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Indices of the selected candidates, `[min(k, B)]`, in the order of the picks; see `divbs_select_with_info`."""
    return divbs_select_with_info(residuals, features, k, rule=rule, draw=draw, generator=generator)[0]


@torch.no_grad()
def divbs_select_with_info(
    residuals: Tensor,
    features: Tensor,
    k: int,
    *,
    rule: Rule = "residual",
    draw: Draw = "argmax",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, DivBSInfo]:
    r"""Select k of B candidates: greedy, and at random once their gradients hold nothing new.

    With `g_i^perp` the part of g_i that is orthogonal to all picks so far, the next pick has the largest

    - `"residual"`: `|<g_i^perp, gbar>|`, the paper's streamlined rule and that of its code;
    - `"projection"`: `|<g_i^perp, gbar>| / ||g_i^perp||`, the exact gain |alpha|.

    Takes `O(B (C + d) min(B, C) + k^2 B)` operations or fewer and `O(B (C + d) + k B)` memory; never waits for a
    device.

    Args:
        residuals: a, `[B, C]`. A common factor (1/B, say) changes nothing.
        features: h, `[B, d]`.
        k: how many; all candidates are picked if `k >= B`.
        rule: see above.
        draw: `"argmax"`, where ties go to the lowest index; `"sample"`, with probabilities proportional to the scores,
            as the released code does.
        generator: for `"sample"` and for the picks at random, on the device of `residuals`; the global one by default.

    Returns:
        int64 `[min(k, B)]`, distinct, in the order of the picks; and `DivBSInfo`.

    Raises:
        ValueError: an unknown option, wrong shapes, a wrong k, or, on the CPU, values that are not finite (elsewhere
            see `all_finite`).
    """
    for name, value in (("residuals", residuals), ("features", features)):
        if value.ndim != 2 or len(value) != len(residuals):
            raise ValueError(
                f"{name}: found shape {tuple(value.shape)}, allowed are [B, C] residuals, [B, d] features"
            )
        _check_finite(name, value)
    rows = len(residuals)
    k = _checked(k, rows, rule, draw, generator, residuals.device)
    dtype = _working_dtype(residuals.device, k * rows)
    with torch.autocast(residuals.device.type, enabled=False):
        a, h = residuals.to(dtype), features.to(dtype)
        if rows <= a.shape[1] + h.shape[1]:  # the matrix takes no more memory than what it is made of
            return _greedy_gram((a @ a.t()).mul_(h @ h.t()), k, rule, draw, generator)
        norms = a.square().sum(dim=1) * h.square().sum(dim=1)
        target = ((a @ (a.t() @ h)) * h).sum(dim=1) / rows

        def column(pick: Tensor) -> Tensor:
            return (a @ a[pick].t()).squeeze(1) * (h @ h[pick].t()).squeeze(1)

        return _greedy(norms, target, column, k, rule, draw, generator)


@torch.no_grad()
def divbs_select_gram(
    gram: Tensor,
    k: int,
    *,
    rule: Rule = "residual",
    draw: Draw = "argmax",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, DivBSInfo]:
    """`divbs_select_with_info` from the matrix of all `<g_i, g_j>`, `[B, B]`, whatever the gradients g are.

    Raises:
        ValueError: an unknown option, wrong shapes, a wrong k, or, on the CPU, values that are not finite.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram: found shape {tuple(gram.shape)}, allowed is [B, B]")
    _check_finite("gram", gram)
    k = _checked(k, len(gram), rule, draw, generator, gram.device)
    with torch.autocast(gram.device.type, enabled=False):
        return _greedy_gram(gram.to(_working_dtype(gram.device, k * len(gram))), k, rule, draw, generator)


def all_finite(value: Tensor) -> Tensor:
    """Whether no value is NaN or infinite: a scalar, bool, on the device of `value`, which must not be empty."""
    # what is not finite is the largest or the smallest, or makes both NaN
    return torch.isfinite(torch.stack(value.aminmax())).all()


def _check_finite(name: str, value: Tensor) -> None:
    if value.device.type != "cpu" or torch.compiler.is_compiling() or not value.numel():
        return  # a device would be waited for
    if not bool(all_finite(value)):
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name}: found {bad} values that are NaN or infinite, allowed are finite ones")


def _checked(k: int, rows: int, rule: str, draw: str, generator: torch.Generator | None, device: torch.device) -> int:
    if rule not in ("residual", "projection"):
        raise ValueError(f"rule: found {rule!r}, allowed are 'residual' and 'projection'")
    if draw not in ("argmax", "sample"):
        raise ValueError(f"draw: found {draw!r}, allowed are 'argmax' and 'sample'")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k: found {k!r}, allowed are integers >= 1")
    if not rows:
        raise ValueError("residuals: found no candidates, allowed is at least one")
    if generator is not None and generator.device.type != device.type:
        raise ValueError(f"generator: found one on {generator.device}, allowed is one on {device}")
    return min(k, rows)


def _working_dtype(device: torch.device, numbers: int) -> torch.dtype:
    return torch.float64 if numbers <= _LARGEST_IN_FLOAT64 and device.type != "mps" else torch.float32


def _greedy_gram(
    gram: Tensor, k: int, rule: str, draw: str, generator: torch.Generator | None
) -> tuple[Tensor, DivBSInfo]:
    def column(pick: Tensor) -> Tensor:
        return gram.index_select(0, pick).squeeze(0)  # symmetric, and rows lie together

    return _greedy(gram.diagonal(), gram.mean(dim=1), column, k, rule, draw, generator)


def _greedy(
    norms: Tensor,
    target: Tensor,
    column: Callable[[Tensor], Tensor],
    k: int,
    rule: str,
    draw: str,
    generator: torch.Generator | None,
) -> tuple[Tensor, DivBSInfo]:
    """Pivoted Cholesky of the Gram matrix with diagonal `norms`, row means `target` and `column(i)`.

    The loop has a fixed length and never looks at a value, so that a device is not stalled: once nothing is left
    (`going` is False) it runs idle.
    """
    rows, places = len(norms), torch.arange(len(norms), device=norms.device)
    no_norm, no_score = _TOLERANCES[norms.dtype]
    smallest = norms.max() * no_norm
    least = torch.finfo(norms.dtype).tiny
    left, rho = norms, target  # ||g_i^perp||^2 and <g_i^perp, gbar>
    directions = norms.new_zeros(k, rows)  # L: row t has <g_i, e_t> of all i
    picks: list[Tensor] = []
    alphas: list[Tensor] = []
    greedy: list[Tensor] = []
    going = torch.ones((), dtype=torch.bool, device=norms.device)
    floor = norms.new_zeros(())
    for step in range(k):
        score = rho.abs()
        if rule == "projection":
            score = score / left.clamp(min=least).sqrt()
        # rows within the span of the picks hold rounding noise alone, which must not be normalised into a direction
        score = score.masked_fill(left <= smallest, 0.0)
        largest = score.max()
        if step == 0:
            floor = largest * no_score
        going = going & (largest > floor)
        pick = _drawn(score, going, generator) if draw == "sample" else _first_near(largest, score, places)

        pivot = torch.where(going, left.index_select(0, pick).sqrt(), torch.inf)  # an idle step adds nothing
        previous = directions[:step]
        known = previous.index_select(1, pick).squeeze(1)
        direction = torch.addmv(column(pick), previous.t(), known, alpha=-1) / pivot
        alpha = rho.index_select(0, pick) / pivot
        directions[step] = direction
        rho = torch.addcmul(rho, alpha, direction, value=-1)
        # of a pick nothing is left, up to rounding
        left = torch.addcmul(left, direction, direction, value=-1).index_fill(0, pick, 0.0)
        picks.append(pick)
        alphas.append(alpha)
        greedy.append(going)

    picked, counts = torch.cat(picks), torch.stack(greedy).long()  # what idle steps pick does not count
    num_greedy, captured = counts.sum(), torch.cat(alphas).square().sum()
    chosen = torch.zeros_like(places).index_add(0, picked, counts) > 0
    total = target.mean()  # ||gbar||^2
    fraction = torch.where(total > 0, captured / total.clamp(min=least), 1.0).clamp(max=1.0)
    steps = places[:k]
    keys = torch.rand(rows, generator=generator, device=norms.device).masked_fill(chosen, 2.0)
    others = keys.argsort()  # those not chosen, in random order, come first
    indices = torch.where(steps < num_greedy, picked, others[(steps - num_greedy).clamp(min=0)])
    return indices, DivBSInfo(fraction, num_greedy)


def _first_near(largest: Tensor, score: Tensor, places: Tensor) -> Tensor:
    below = score < largest * (1 - _TIE[score.dtype])
    return places.masked_fill(below, len(places) - 1).amin(dim=0, keepdim=True)


def _drawn(score: Tensor, going: Tensor, generator: torch.Generator | None) -> Tensor:
    """One draw with probabilities proportional to the scores: what `torch.multinomial` computes, without its checks,
    which would stall a device."""
    noise = torch.empty_like(score).exponential_(generator=generator)
    return (torch.where(going, score, 1.0) / noise).argmax(dim=0, keepdim=True)


# ------------------------------------------------------------------------------------------------ sequences
def sketch_projections(
    num_classes: int, width: int, *, dim: int = 64, seed: int = 0, device: torch.device | str | None = None
) -> tuple[Tensor | None, Tensor | None]:
    r"""Random projections `R_1 [C, dim]` and `R_2 [d, dim]` with `E[R R^T] = 1`, for `sequence_sketch`.

    They are made on the CPU, so that every device and process has the same. A side that is not wider than `dim` is
    kept as it is (None).
    """
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(size, dim, generator=generator) / dim**0.5 for size in (num_classes, width)]
    one, two = (value.to(device) if value.shape[0] > dim else None for value in made)
    return one, two


def sequence_sketch(
    hidden: Tensor, logits: Tensor, labels: Tensor, projections: tuple[Tensor | None, Tensor | None]
) -> Tensor:
    r"""A short vector in place of a sequence's gradient `G_n = sum_t a_t outer h_t`: `vec((A R_1)^T (H R_2))`.

    Inner products of two such vectors are those of the gradients, on average over the projections. Selecting by them
    is `divbs_select(ones[B, 1], sketches, k)`.

    Args:
        hidden: h, `[B, T, d]`.
        logits: z, `[B, T, C]`; the distribution over C exists for one sequence at a time.
        labels: int `[B, T]`, aligned with the logits; -100 is ignored, and a sequence of nothing else gives zeros.
        projections: of `sketch_projections`.

    Returns:
        `[B, r_1 r_2]`, at least float32, where r is `dim` (or the side's own size, if not wider).
    """
    _check_sequences(hidden, logits, labels)
    one, two = projections
    rows = []
    with torch.autocast(hidden.device.type, enabled=False):
        for h, z, y in zip(hidden, logits, labels, strict=True):
            a, h = logit_residuals(z, y), at_least_float32(h)
            a, h = (value if by is None else value @ by.to(value.dtype) for value, by in ((a, one), (h, two)))
            rows.append((a.t() @ h.to(a.dtype)).flatten())
    return torch.stack(rows)


def sequence_means(hidden: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means of a and h over a sequence's labelled tokens, `[B, C]` and `[B, d]`: cheap, but their product is not the
    sequence's gradient. Arguments as in `sequence_sketch`."""
    _check_sequences(hidden, logits, labels)
    labelled = labels.ne(IGNORED_LABEL)
    counts = labelled.sum(dim=1, keepdim=True).clamp(min=1)
    a = torch.stack([logit_residuals(z, y).sum(dim=0) for z, y in zip(logits, labels, strict=True)])
    h = (at_least_float32(hidden) * labelled.unsqueeze(-1)).sum(dim=1)
    return a / counts, h / counts


def sequence_gradients(hidden: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The sequences' gradients themselves, `[B, C d]`: for tests and small vocabularies. Arguments as in
    `sequence_sketch`."""
    return sequence_sketch(hidden, logits, labels, (None, None))


def _check_sequences(hidden: Tensor, logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 3 or not labels.shape == logits.shape[:2] == hidden.shape[:2]:
        raise ValueError(
            f"labels: found shape {tuple(labels.shape)} with logits {tuple(logits.shape)} and hidden states "
            f"{tuple(hidden.shape)}, allowed are [B, T], [B, T, C] and [B, T, d]"
        )
