r"""FedLESAM, federated sharpness-aware minimization with locally estimated global perturbations.

Fan et al., "Locally Estimated Global Perturbations are Better than Local Perturbations for Federated Sharpness-aware
Minimization", ICML 2024, https://arxiv.org/abs/2405.18890. What runs is the paper's perturbation, with one norm over
all tensors; the corrections and the server's steps of its S and D variants are those of the authors' code.

| symbol | argument | |
|---|---|---|
| `w_t`, `w` | `received` or `global_params`, `params` | global model, and a client's weights; at the end `w_K` |
| `w_t - w_prev` | `global_update` | how the global model has changed |
| `rho` | `rho` | length of the perturbation |
| `c`, `c_i` | `global_control`, `control` | SCAFFOLD's control of the server and of client i |
| `h_i`, `h` | `control` | FedDyn's control of client i, and the mean of all clients' |
| `sum_k lr_k` | `sum_of_rates` | learning rates of a round's updates, added up |
| `N`, `eta_g` | `num_clients`, `global_lr` | number of all clients, and the server's rate |

| equation | function |
|---|---|
| `eps = rho (w_prev - w_t) / ||w_prev - w_t||` | `lesam_perturbation` |
| FedProx, FedDyn: `w - w_t + h_i`, whose multiple is added to the gradient | `proximal_correction` |
| SCAFFOLD: `c - c_i`, likewise | `scaffold_correction` |
| `c_i+ = c_i - c - (w_K - w_t) / sum_k lr_k` (SCAFFOLD's option II) | `control_update` |
| `h_i+ = h_i + w_K - w_t` | `dynamic_update` |
| `c+ = c + 1/N sum_i (c_i+ - c_i)`; `h+ = h + 1/N sum_i (w_{i,K} - w_t)` | `global_control_update` |
| `w_{t+1} = w_t + eta_g (mean_i (w_{i,K} - w_t) + h)`, `h = 0` but for D | `server_update` |

SCAFFOLD: Karimireddy et al., ICML 2020; FedProx: Li et al., MLSys 2020; FedDyn: Acar et al., ICLR 2021, whose states
are `-lamb h_i` here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32

__all__ = [
    "control_update",
    "dynamic_update",
    "global_control_update",
    "lesam_perturbation",
    "proximal_correction",
    "scaffold_correction",
    "server_update",
]


# ------------------------------------------------------------------------------------------------ perturbation
@torch.no_grad()
def lesam_perturbation(global_update: Sequence[Tensor] | None, *, rho: float) -> list[Tensor] | None:
    """The step of length `rho` back along the global model's last change, `eps = -rho update / ||update||`.

    There is one norm over all tensors, computed relative to the largest value, so that no size of the update overflows
    or vanishes.

    Args:
        global_update: `w_t - w_prev`, floating-point tensors; None without an earlier model.
        rho: length of the step.

    Returns:
        One tensor for every one given, of its dtype and device; zeros for an update of zeros, NaN where a value is not
        finite; None without an earlier model.
    """
    if global_update is None:
        return None
    values = [at_least_float32(update.detach()) for update in global_update]
    largest = _largest(values)
    if largest is None:
        return [torch.zeros_like(update) for update in global_update]
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    scaled = [value / unit.to(value) for value in values]
    length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value).to(unit) for value in scaled]))
    scale = -rho / torch.where(largest > 0, length, torch.ones_like(length))
    return [(value * scale.to(value)).to(one.dtype) for value, one in zip(scaled, global_update, strict=True)]


def _largest(values: Sequence[Tensor]) -> Tensor | None:
    """The largest absolute value, on the first tensor's device; None where there is no value at all."""
    sizes = [value.abs().amax() for value in values if value.numel()]
    if not sizes:
        return None
    wide = torch.float64 if any(size.dtype == torch.float64 for size in sizes) else torch.float32
    return torch.stack([size.to(sizes[0].device, wide) for size in sizes]).amax()


# ------------------------------------------------------------------------------------------------ clients
@torch.no_grad()
def proximal_correction(
    params: Sequence[Tensor], received: Sequence[Tensor], control: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """What pulls a client back, `w - w_t`, of FedProx; with a control that of FedDyn, `w - w_t + h_i`.

    It is the gradient of `||w - w_t||^2 / 2` (and of `<w, h_i>`) by the weights.

    Args:
        params: `w`.
        received: `w_t`, of the same shapes.
        control: `h_i`, likewise.

    Returns:
        One tensor for every parameter, at least float32.

    Raises:
        ValueError: lists of other lengths or shapes.
    """
    pulls = _differences(params, received=received)
    if control is None:
        return pulls
    _check_alike(params, control=control)
    return [pull + at_least_float32(one) for pull, one in zip(pulls, control, strict=True)]


@torch.no_grad()
def scaffold_correction(global_control: Sequence[Tensor], control: Sequence[Tensor]) -> list[Tensor]:
    """What SCAFFOLD adds to a client's gradients, `c - c_i`; at least float32.

    Raises:
        ValueError: lists of other lengths or shapes.
    """
    return _differences(global_control, control=control)


@torch.no_grad()
def control_update(
    control: Sequence[Tensor],
    global_control: Sequence[Tensor],
    params: Sequence[Tensor],
    received: Sequence[Tensor],
    *,
    sum_of_rates: float | Sequence[float],
) -> list[Tensor]:
    """A client's new control of SCAFFOLD, `c_i+ = c_i - c - (w_K - w_t) / sum_k lr_k`.

    With corrections `c - c_i` of weight 1 and plain SGD it is the mean of the gradients along the client's way. With a
    weight `lamb` below 1 a share `1 - lamb` of `c_i - c` is left in it, so that controls grow over the rounds until
    `lamb (c - c_i)` is what evens out the clients.

    Args:
        control: `c_i`.
        global_control: `c`.
        params: `w_K`.
        received: `w_t`.
        sum_of_rates: of all the round's updates, one number or one for every parameter. Where it is 0 nothing was
            learned, and the control stays as it is.

    Returns:
        One tensor for every parameter, at least float32.

    Raises:
        ValueError: lists of other lengths or shapes; a negative sum.
    """
    _check_alike(params, control=control, global_control=global_control)
    moves = _differences(params, received=received)
    rates = [sum_of_rates] * len(moves) if isinstance(sum_of_rates, float | int) else list(sum_of_rates)
    if len(rates) != len(moves) or not all(rate >= 0 for rate in rates):
        raise ValueError(f"sum_of_rates: found {rates}, allowed are {len(moves)} numbers >= 0")
    return [
        at_least_float32(own) - at_least_float32(common) - move / rate if rate else at_least_float32(own).clone()
        for own, common, move, rate in zip(control, global_control, moves, rates, strict=True)
    ]


@torch.no_grad()
def dynamic_update(control: Sequence[Tensor], params: Sequence[Tensor], received: Sequence[Tensor]) -> list[Tensor]:
    """A client's new control of FedDyn, `h_i+ = h_i + w_K - w_t`; at least float32.

    Raises:
        ValueError: lists of other lengths or shapes.
    """
    return proximal_correction(params, received, control)


# ------------------------------------------------------------------------------------------------ server
@torch.no_grad()
def global_control_update(
    global_control: Sequence[Tensor], changes: Sequence[Sequence[Tensor]], *, num_clients: int
) -> list[Tensor]:
    """The server's control once some of the clients have reported, `c+ = c + 1/N sum_i (c_i+ - c_i)`.

    FedDyn's is the same, with `w_{i,K} - w_t` as changes.

    Args:
        global_control: `c`, or `h`.
        changes: a list of tensors for every client that took part; none leaves the control as it is.
        num_clients: `N`, all clients, whether or not they took part.

    Returns:
        One tensor for every one of the control, at least float32.

    Raises:
        ValueError: lists of other lengths or shapes; fewer clients than changes.
    """
    if num_clients < max(1, len(changes)):
        raise ValueError(f"num_clients: found {num_clients} with {len(changes)} changes, allowed are as many or more")
    sums = _sums(global_control, changes)
    return [at_least_float32(one) + total / num_clients for one, total in zip(global_control, sums, strict=True)]


@torch.no_grad()
def server_update(
    global_params: Sequence[Tensor],
    client_updates: Sequence[Sequence[Tensor]],
    *,
    global_lr: float = 1.0,
    control: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The server's step, `w_{t+1} = w_t + eta_g (mean_i (w_{i,K} - w_t) + h)`: all clients count alike.

    Args:
        global_params: `w_t`, floating-point tensors.
        client_updates: `w_{i,K} - w_t`, a list for every client that took part.
        global_lr: `eta_g`.
        control: FedDyn's `h`; None for 0.

    Returns:
        The new weights, of the old ones' dtypes; and what was added to them, at least float32.

    Raises:
        ValueError: no client; lists of other lengths or shapes.
    """
    if not client_updates:
        raise ValueError("client_updates: found none, allowed is at least one client's")
    updates = [total / len(client_updates) for total in _sums(global_params, client_updates)]
    if control is not None:
        _check_alike(global_params, control=control)
        updates = [update + at_least_float32(one) for update, one in zip(updates, control, strict=True)]
    updates = [global_lr * update for update in updates]
    pairs = zip(global_params, updates, strict=True)
    return [(at_least_float32(param) + update).to(param.dtype) for param, update in pairs], updates


# ------------------------------------------------------------------------------------------------ lists
def _sums(alike: Sequence[Tensor], lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Sums over lists, in their order, at least float32; zeros for no list."""
    sums = [torch.zeros_like(at_least_float32(one)) for one in alike]
    for number, tensors in enumerate(lists):
        _check_alike(alike, **{f"client {number}": tensors})
        sums = [total + at_least_float32(one) for total, one in zip(sums, tensors, strict=True)]
    return sums


def _differences(tensors: Sequence[Tensor], **others: Sequence[Tensor]) -> list[Tensor]:
    """The tensors minus others, at least float32, as a list of that name."""
    _check_alike(tensors, **others)
    (subtracted,) = others.values()
    return [at_least_float32(a) - at_least_float32(b) for a, b in zip(tensors, subtracted, strict=True)]


def _check_alike(tensors: Sequence[Tensor], **others: Sequence[Tensor]) -> None:
    """Refuse lists of other lengths or shapes, which would be broadcast in silence."""
    shapes = [tuple(one.shape) for one in tensors]
    for name, values in others.items():
        if (found := [tuple(one.shape) for one in values]) != shapes:
            raise ValueError(f"{name}: found tensors of shapes {found}, allowed are {shapes}")
