r"""MoLA, mixture of low-rank adapters for heterogeneous data.

Zhou et al., "Exploring Training on Heterogeneous Data with Mixture of Low-rank Adapters", ICML 2024,
https://arxiv.org/abs/2406.09679. (Not the MoLA of Gao et al., which allocates LoRA experts to the layers of an LLM.)
Written from the abstract and the authors' code; the numbers of the paper's equations are not known.

| symbol | argument | |
|---|---|---|
| `x_b` | `x` | input of an adapted layer for sample b of B |
| `t_b`, `l_b` | `task_ids`, `losses` | its task and its loss |
| `A_e`, `B_e`, `s` | `lora_A`, `lora_B`, `scaling` | factors of adapter ("expert") e of E, of rank r; their scale |
| `w in R^{B x E}` | `w` | routing weights |
| `z` | `logits` | the router's output |
| `f_b`, `tau` | `features`, `temperature` | projected router output of the TwD loss |

| equation (no numbers) | function |
|---|---|
| MoLA-Grad: `w_b = one_hot(t_b)` | `task_routing` |
| MoLA-Router: `w = softmax(z)` | `router_routing` |
| `delta_b = s sum_e w_{b,e} B_e A_e x_b` | `lora_mixture_linear`; of a convolution, `lora_mixture_conv2d` |
| Task-wise Decorrelation: `L_TwD = -1/|Pos| sum_Pos log(S_ij / sum_{k != i} S_ik)` | `twd_loss` |
| the tasks' losses as one | `combine_task_losses` |
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32

__all__ = [
    "combine_task_losses",
    "lora_mixture_conv2d",
    "lora_mixture_linear",
    "router_routing",
    "task_routing",
    "twd_loss",
]


# ------------------------------------------------------------------------------------------------ routing weights
def task_routing(task_ids: Tensor, *, num_experts: int) -> Tensor:
    r"""MoLA-Grad: the adapter is picked by the task, `w_b = one_hot(t_b)`.

    Args:
        task_ids: int64 `[B]`, values in `[0, num_experts)`.
        num_experts: E.

    Returns:
        float32 `[B, E]`. Ids on the CPU are range-checked. On an accelerator the check would stall the device, so a
        wrong id gives a row of NaN there, which no loss can hide.

    Raises:
        ValueError: wrong shape or dtype, or an id out of range (CPU).
    """
    if task_ids.ndim != 1 or task_ids.is_floating_point() or task_ids.is_complex():
        raise ValueError(
            f"task_ids: found {task_ids.dtype} of shape {tuple(task_ids.shape)}, allowed is an integer per sample, [B]"
        )
    if task_ids.device.type == "cpu" and not torch.compiler.is_compiling() and task_ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(task_ids))
        if low < 0 or high >= num_experts:
            raise ValueError(
                f"task_ids: found ids from {low} to {high}, allowed are 0 to {num_experts - 1} ({num_experts=})"
            )
    one_hot = (task_ids[:, None] == torch.arange(num_experts, device=task_ids.device)).float()
    in_range = (task_ids >= 0) & (task_ids < num_experts)
    return one_hot.masked_fill(~in_range[:, None], float("nan"))


def router_routing(logits: Tensor, *, kind: Literal["soft", "hard"] = "soft") -> Tensor:
    r"""MoLA-Router: `w = softmax(z)`; the hard variant is `one_hot(argmax z)` with a straight-through gradient.

    Args:
        logits: z, `[B, E]`, the output of the router network.
        kind: `"soft"`, or `"hard"`: one-hot forward, whose gradient is handed to the logits unchanged.

    Returns:
        `[B, E]` in at least float32; rows sum to one.

    Raises:
        ValueError: unknown kind.
    """
    logits = at_least_float32(logits)
    if kind == "soft":
        return logits.softmax(dim=-1)
    if kind == "hard":
        one_hot = F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
        return one_hot + (logits - logits.detach())
    raise ValueError(f"kind: found {kind!r}, allowed are 'soft' and 'hard'")


# ------------------------------------------------------------------------------------------------ adapted layers
def _own_experts_are_cheaper(*, rows: int, positions: int, experts: int, rank: int, grouped: bool = False) -> bool:
    """Whether products with a copy of each row's own expert cost less than those with all experts side by side.

    In units of what one position of a row costs at rank r, side by side takes `positions * experts` per row, and its
    own expert `positions`. To read an expert takes 8 units; to copy it for a row, and to add the gradients of copies,
    24. These two were measured on a CPU, at widths of 192 and 768 and ranks of 8 and 16, where both ways cross.

    Where rows are groups of a convolution, a few channels each take as long as up to 16 of all experts together.

    Copies take no more memory than what is held anyway, else they are not made: r vectors a copy; four times r an
    expert, with its gradient and the optimizer's two moments; one vector a position, its input and output.
    """
    if grouped and experts * rank <= 16:
        return False
    faster = 0 < 24 * rows < rows * positions * (experts - 1) + 8 * experts
    fits = rows * rank <= 4 * experts * rank + rows * positions
    return faster and fits


def _own(w: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """`[R]`: which expert is each row's only one, and its `s * w` (NaN in a row of NaN)."""
    weight, expert = w.max(dim=-1)
    return expert, weight * scaling


def _copies(stacked: Tensor, expert: Tensor) -> Tensor:
    """Rows of `[E, ...]`; unlike that of an index, the gradient of an embedding is deterministic on a GPU too."""
    return F.embedding(expert, stacked.flatten(1)).view(-1, *stacked.shape[1:])


def _side_by_side(lora_B: Tensor) -> Tensor:
    """`[E, out, r] -> [out, E r]`."""
    return lora_B.transpose(0, 1).flatten(1)


def _gate(w: Tensor, rank: int, scaling: float, dtype: torch.dtype) -> Tensor:
    """`s * w` repeated over the rank axis: `[R, E] -> [R, E r]`, one factor per row of the stacked A."""
    return (w * scaling).repeat_interleave(rank, dim=-1).to(dtype)


def lora_mixture_linear(
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    w: Tensor,
    *,
    scaling: float,
    base: Tensor | None = None,
    one_hot: bool = False,
) -> Tensor:
    r"""`delta_b = s * sum_e w_{b,e} B_e A_e x_b`, without a loop over experts or samples.

    All A_e are stacked to one `[E r, in]` matrix and all B_e to one `[out, E r]` matrix; `s * w` multiplies the
    activation between the two products. That is exact for any w and costs as much as one LoRA of rank E r. Where w is
    one-hot, two batched products with the factors of each row's own expert give the same for the cost of one LoRA of
    rank r, unless the input is so short that copying the factors costs more (`_own_experts_are_cheaper`).

    Args:
        x: `[B, ..., in]`.
        lora_A: `[E, r, in]`.
        lora_B: `[E, out, r]`.
        w: `[R, E]`, one row for each of R equal parts of x, in order: R = B for a routing per sample, 1 for one that
            the batch shares, less than B where a sample has several neighbouring rows.
        scaling: s, usually `lora_alpha / r`.
        base: optional `[B, ..., out]` that the delta is added to inside the second product (saves a pass over it).
        one_hot: whether every row of w has but one element that is not zero (or nothing but NaN), and the others need
            no gradient.

    Returns:
        `[B, ..., out]`: the delta, or `base + delta`.
    """
    experts, rank, in_features = lora_A.shape
    rows, out_features = w.shape[0], lora_B.shape[1]
    positions = x.shape[:-1].numel() // max(rows, 1)
    parts = x.reshape(rows, positions, in_features)
    if one_hot and _own_experts_are_cheaper(rows=rows, positions=positions, experts=experts, rank=rank):
        expert, gate = _own(w, scaling)
        hidden = parts @ _copies(lora_A, expert).transpose(1, 2)
        hidden = hidden * gate.to(hidden.dtype)[:, None, None]
        own_B = _copies(lora_B, expert).transpose(1, 2)
        out = hidden @ own_B if base is None else torch.baddbmm(base.reshape(rows, positions, -1), hidden, own_B)
    else:
        hidden = F.linear(parts, lora_A.flatten(0, 1))
        hidden = (hidden * _gate(w, rank, scaling, hidden.dtype)[:, None]).flatten(0, 1)
        all_B = _side_by_side(lora_B).t()
        out = hidden @ all_B if base is None else torch.addmm(base.reshape(-1, out_features), hidden, all_B)
    return out.view(*x.shape[:-1], out_features)


def lora_mixture_conv2d(
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    w: Tensor,
    *,
    scaling: float,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    form: Literal["factored", "loralib"] = "factored",
    one_hot: bool = False,
) -> Tensor:
    r"""`delta_b = conv(x_b, s * sum_e w_{b,e} D_e)` with the kernel update D_e in one of two forms.

    `"factored"` (as PEFT's LoRA): `D_e[o, i] = sum_c B_e[o, c] A_e[c, i]`, that is a k x k convolution to r channels
    and a 1 x 1 convolution; `r (k^2 in + out)` parameters per expert. `"loralib"` (the authors'): the row-major memory
    of the `[out k, in k]` product `B_e A_e` is read as `[out, in, k, k]`; `r k^2 (in + out)` parameters. For k = 1
    both are the same. Only the factored form needs no kernel per sample; where w is one-hot and the image not too
    small (`_own_experts_are_cheaper`), it takes each row's own kernel of rank r in place of E r channels.

    Args:
        x: `[B, in, H, W]`.
        lora_A: factored `[E, r, in, k, k]`; loralib `[E, r k, in k]`.
        lora_B: factored `[E, out, r]`; loralib `[E, out k, r k]`.
        w: `[R, E]`, one row for each of R equal parts of x, in order, as of `lora_mixture_linear`.
        scaling: s.
        kernel_size, stride, padding, dilation: geometry of the base convolution (groups = 1, zero padding).
        form: see above.
        one_hot: as of `lora_mixture_linear`.

    Returns:
        `[B, out, H', W']`.

    Raises:
        ValueError: unknown form, or a kernel that is not square in the loralib form.
    """
    if form not in ("factored", "loralib"):
        raise ValueError(f"form: found {form!r}, allowed are 'factored' and 'loralib'")
    height, width = _pair(kernel_size)
    if form == "loralib" and height != width:
        raise ValueError(f"kernel_size: found {(height, width)}, form='loralib' allows square kernels only")
    geometry: Any = (stride, padding, dilation)
    rows, experts = w.shape
    if form == "loralib":
        updates = (lora_B @ lora_A).reshape(experts, -1, x.shape[1], height, width)
        if one_hot:
            expert, gate = _own(w, scaling)
            kernels = _copies(updates, expert) * gate.to(updates.dtype)[:, None, None, None, None]
        else:
            kernels = torch.einsum("be,eoihw->boihw", (w * scaling).to(updates.dtype), updates)
        return _conv2d_by_row(x, kernels, *geometry)

    rank = lora_A.shape[1]
    # of the output; a k x k kernel costs as much to copy as k x k vectors
    positions = x[:, 0].numel() // (max(rows, 1) * math.prod(_pair(stride)) * height * width)
    sizes = {"rows": rows, "positions": positions, "experts": experts, "rank": rank}
    if one_hot and _own_experts_are_cheaper(**sizes, grouped=True):
        expert, gate = _own(w, scaling)
        hidden = _conv2d_by_row(x, _copies(lora_A, expert), *geometry)
        own_B = _copies(lora_B, expert) * gate.to(lora_B.dtype)[:, None, None]
        out = own_B[:, None] @ hidden.reshape(rows, -1, rank, hidden.shape[2:].numel())
        return out.view(len(x), -1, *hidden.shape[2:])
    hidden = F.conv2d(x, lora_A.flatten(0, 1), None, *geometry)
    gate = _gate(w, rank, scaling, hidden.dtype).repeat_interleave(len(x) // max(rows, 1), dim=0)
    return F.conv2d(hidden * gate[:, :, None, None], _side_by_side(lora_B)[:, :, None, None])


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _conv2d_by_row(x: Tensor, kernels: Tensor, *geometry: Any) -> Tensor:
    """A kernel `[o, i, k, k]` for each of R equal parts of x: they become the groups of a single convolution."""
    rows, out_channels = kernels.shape[:2]
    side_by_side = x.reshape(rows, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
    convolve: Any = F.conv2d  # whose overloads do not take a tuple of options
    out: Tensor = convolve(side_by_side, kernels.flatten(0, 1), None, *geometry, groups=rows)
    return out.reshape(-1, rows, out_channels, *out.shape[2:]).transpose(0, 1).flatten(0, 1)


# ------------------------------------------------------------------------------------------------ losses
def twd_loss(
    features: Tensor,
    task_ids: Tensor,
    *,
    temperature: float = 1.0,
    gather: Callable[[Tensor], Tensor] | None = None,
    first: int = 0,
) -> Tensor:
    r"""Task-wise Decorrelation: samples of one task route alike, samples of different tasks differently.

    With `u_b = f_b / ||f_b||`, `S_{ij} = exp(u_i . u_j / tau)` and `Pos = {(i, j): i != j, t_i = t_j}`:

        L_TwD = -1/|Pos| * sum_{(i,j) in Pos} log( S_{ij} / sum_{k != i} S_{ik} )

    The mean runs over ordered pairs, so a task with n samples contributes n (n - 1) terms, and a task with one sample
    serves as negative only. Without any positive pair (B = 1, say) the loss is 0 with a zero gradient.

    Where several processes have a part of the batch each, all of them find the loss of the whole, and each the
    gradient of its own rows, from the pairs of its own rows with all: `[b, B]` of them.

    Args:
        features: f, `[B, d]`: the projected router logits; or those of this process, `[b, d]`.
        task_ids: int64 `[B]`, or `[b]`.
        temperature: tau.
        gather: of several processes: gives the rows of all, `[b, ...] -> [B, ...]`, which take no gradient.
        first: where this process's rows begin among them.

    Returns:
        Scalar in at least float32.
    """
    unit = F.normalize(at_least_float32(features), dim=-1, eps=1e-12)
    everyone, ids = (unit, task_ids) if gather is None else (gather(unit.detach()), gather(task_ids))
    with torch.autocast(unit.device.type, enabled=False):
        similarity = unit @ everyone.t() / temperature
    places = torch.arange(len(everyone), device=unit.device)
    itself = places[first : first + len(unit), None] == places
    # a finite mask: with B = 1 a row of -inf would be NaN
    others = similarity.masked_fill(itself, torch.finfo(unit.dtype).min)
    positive = (task_ids[:, None] == ids) & ~itself
    shares = others.log_softmax(dim=-1).masked_fill(~positive, 0.0)
    if gather is None:
        return -shares.sum() / positive.sum().clamp(min=1)
    own = torch.stack([shares.sum(dim=1), others.logsumexp(dim=1), positive.sum(dim=1).to(unit.dtype)], dim=1)
    total, normalizer, number = gather(own.detach()).unbind(dim=1)
    # an own row i is a partner in every row j as well, whose term has this slope in S_ij = S_ji
    slope = positive.to(unit.dtype) - number * (others.detach() - normalizer).exp()
    part = shares.sum() + (slope * similarity).sum()
    return -(total.sum() + part - part.detach()) / number.sum().clamp(min=1)


def combine_task_losses(
    losses: Tensor,
    task_ids: Tensor,
    *,
    num_tasks: int,
    reduction: Literal["sum", "sample"] = "sample",
    task_counts: Tensor | None = None,
) -> Tensor:
    r"""One loss from per-sample losses of several tasks.

    `"sample"`: the batch mean. `"sum"`: `sum_t mean_{b: t_b = t} l_b` over the tasks present, so that a small task
    weighs as much as a large one.

    Args:
        losses: `[B]`.
        task_ids: int64 `[B]`.
        num_tasks: upper bound of the ids.
        reduction: see above.
        task_counts: `[num_tasks]`, samples per task of the batch the means are taken over when that is larger than
            this one (gradient accumulation, several processes); default: counted here.

    Returns:
        Scalar in at least float32.

    Raises:
        ValueError: unknown reduction.
    """
    losses = at_least_float32(losses)
    if reduction == "sample":
        return losses.mean()
    if reduction != "sum":
        raise ValueError(f"reduction: found {reduction!r}, allowed are 'sum' and 'sample'")
    if task_counts is None:
        # not bincount, which would stall a device
        task_counts = losses.new_zeros(num_tasks).index_add(0, task_ids, torch.ones_like(losses))
    return (losses / task_counts[task_ids].to(losses.dtype)).sum()
