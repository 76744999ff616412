r"""FedGELA, a simplex ETF as the fixed classifier of all clients, scaled at each by its own classes.

Fan et al., "Federated Learning with Bilateral Curation for Partially Class-Disjoint Data", NeurIPS 2023,
https://arxiv.org/abs/2405.18972. The behaviour is that of the authors' code.

| symbol | argument | |
|---|---|---|
| `P` | `orthonormal` | `[d, C]`, orthonormal columns, for features of width d and C classes |
| `M` | `etf` | `[d, C]`, a simplex equiangular tight frame: unit columns, cosines `-1/(C-1)` |
| `n_{i,c}`, `n_i` | `class_counts`, `client_sizes` | samples of class c at client i, and all of its samples |
| `phi_i` | `class_weights` | `[C]`, what client i scales the columns of `M` by |
| `f` | `features` | `[B, d]` |
| `w_i` | `client_params` | client i's parameters |

| equation | function |
|---|---|
| `P` of a random matrix (QR) | `random_orthonormal` |
| `M = sqrt(C/(C-1)) P (I - 11^T/C)` | `simplex_etf` |
| the same for `d = C-1`, where no `P` exists: `M = sqrt(C/(C-1)) R Q^T` | `narrow_simplex_etf` |
| `phi_{i,c} = C n_{i,c} / n_i` | `etf_class_weights` |
| `f (M phi) / temperature`, locally with `phi_i`, globally without | `etf_logits`, `scaled_etf` |
| `w = sum_i n_i w_i / sum_i n_i` | `weighted_average` |
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_ext.functional._dtypes import at_least_float32

__all__ = [
    "etf_class_weights",
    "etf_logits",
    "narrow_simplex_etf",
    "random_orthonormal",
    "scaled_etf",
    "simplex_etf",
    "weighted_average",
]


# ------------------------------------------------------------------------------------------------ the classifier
def random_orthonormal(rows: int, columns: int, *, generator: torch.Generator) -> Tensor:
    """A matrix with orthonormal columns, drawn uniformly: the Q of a normal matrix whose R has a positive diagonal.

    Without that sign Q would depend on the implementation of QR.

    Args:
        rows, columns: of the matrix, at least as many rows.
        generator: on the CPU.

    Returns:
        float64 `[rows, columns]`.

    Raises:
        ValueError: fewer rows than columns.
    """
    if rows < columns:
        raise ValueError(f"rows: found {rows}, allowed are at least as many as columns, {columns}")
    normal = torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(normal)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def simplex_etf(orthonormal: Tensor) -> Tensor:
    """Simplex equiangular tight frame, `M = sqrt(C/(C-1)) P (I - 11^T/C)`.

    Args:
        orthonormal: `P`, `[d, C]`, orthonormal columns.

    Returns:
        `[d, C]`, at least float32: unit columns, any two with the cosine `-1/(C-1)`.

    Raises:
        ValueError: fewer than two classes, or `d < C`.
    """
    orthonormal = at_least_float32(orthonormal)
    width, classes = orthonormal.shape
    _check_classes(classes)
    if width < classes:
        raise ValueError(
            f"orthonormal: found [{width}, {classes}], allowed are at least as many rows as columns (d = C - 1: "
            "narrow_simplex_etf)"
        )
    return math.sqrt(classes / (classes - 1)) * (orthonormal - orthonormal.mean(dim=1, keepdim=True))


def narrow_simplex_etf(rotation: Tensor) -> Tensor:
    """Simplex equiangular tight frame of C vectors in the `C - 1` dimensions that they span.

    `M = sqrt(C/(C-1)) R Q^T`, with the columns of `Q` an orthonormal basis (Helmert's) of the vectors whose entries
    add up to 0: `Q Q^T = I - 11^T/C`.

    Args:
        rotation: `R`, `[C-1, C-1]`, orthogonal.

    Returns:
        `[C-1, C]`, at least float32, with the properties of `simplex_etf`.

    Raises:
        ValueError: fewer than two classes, or a matrix that is not square.
    """
    rotation = at_least_float32(rotation)
    if rotation.shape[0] != rotation.shape[-1]:
        raise ValueError(f"rotation: found {list(rotation.shape)}, allowed is a square matrix")
    classes = len(rotation) + 1
    _check_classes(classes)
    row = torch.arange(1, classes, dtype=torch.float64, device=rotation.device)[:, None]
    column = torch.arange(classes, device=rotation.device)
    # row k: k equal entries and one that balances them, of length 1
    basis = torch.where(column < row, 1.0, torch.where(column == row, -row, 0.0)) / (row * (row + 1)).sqrt()
    return math.sqrt(classes / (classes - 1)) * (rotation.double() @ basis).to(rotation.dtype)


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise ValueError(f"classes: found {classes}, allowed are at least 2: one vector has no simplex")


# ------------------------------------------------------------------------------------------------ views
def etf_class_weights(class_counts: Tensor) -> Tensor:
    """Weights of a client's classes, `phi_c = C n_c / n`: mean 1, and 0 for a class that is missing.

    Args:
        class_counts: `n_c`, `[C]`, of any dtype.

    Returns:
        `[C]`, at least float32; of integers float32.

    Raises:
        ValueError: not one count per class, counts that are negative or not finite, or all zero.
    """
    if class_counts.ndim != 1 or not len(class_counts):
        raise ValueError(f"class_counts: found shape {list(class_counts.shape)}, allowed is one count per class")
    counts = class_counts.double()
    if not bool(torch.isfinite(counts).all()) or bool((counts < 0).any()):
        raise ValueError(f"class_counts: found {class_counts.tolist()}, allowed are finite numbers >= 0")
    if not bool(counts.any()):
        raise ValueError("class_counts: found zeros alone, allowed is at least one class that occurs")
    dtype = at_least_float32(class_counts).dtype if class_counts.is_floating_point() else torch.float32
    return (counts * (len(counts) / counts.sum())).to(dtype)


def scaled_etf(etf: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """`M phi`: every class's vector times its weight.

    Args:
        etf: `M`, `[d, C]`.
        class_weights: `phi`, `[C]`; None is the global view, `M` itself.

    Returns:
        `[d, C]`, at least float32.

    Raises:
        ValueError: weights of another number of classes.
    """
    etf = at_least_float32(etf)
    if class_weights is None:
        return etf
    if class_weights.shape != etf.shape[1:]:
        raise ValueError(
            f"class_weights: found shape {list(class_weights.shape)}, allowed is one weight for each of the "
            f"{etf.shape[1]} classes"
        )
    return etf * class_weights


def etf_logits(features: Tensor, etf: Tensor, class_weights: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """`f (M phi) / temperature`; a class of weight 0 has the logit 0 and stays in the softmax.

    Args:
        features: `f`, `[B, d]`, or with further dimensions in front.
        etf: `M`, `[d, C]`.
        class_weights: `phi`, `[C]`; None is the global view.
        temperature: above 0.

    Returns:
        `[B, C]`, at least float32, also under autocast: half precision is off by tenths at sharp temperatures.

    Raises:
        ValueError: a temperature that is not above 0, or weights of another number of classes.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: found {temperature}, allowed are numbers > 0")
    with torch.autocast(features.device.type, enabled=False):
        matrix = scaled_etf(etf, class_weights)
        dtype = torch.promote_types(at_least_float32(features).dtype, matrix.dtype)
        return features.to(dtype) @ matrix.to(dtype) / temperature


# ------------------------------------------------------------------------------------------------ the server
def weighted_average(client_params: Sequence[Sequence[Tensor]], client_sizes: Sequence[float]) -> list[Tensor]:
    """The clients' parameters, averaged by their numbers of samples; the fixed classifier is not among them.

    Args:
        client_params: one list of tensors for each client, of the same shapes.
        client_sizes: number of samples of each.

    Returns:
        One tensor for each parameter, of its own dtype; computed in at least float32, in the order of the clients.

    Raises:
        ValueError: no client, sizes that are not above 0, lists of other lengths, or tensors of other shapes.
    """
    if not client_params or len(client_params) != len(client_sizes):
        raise ValueError(
            f"client_sizes: found {len(client_sizes)} for {len(client_params)} clients, allowed is one for each client"
        )
    wrong = [size for size in client_sizes if not 0 < size < math.inf]
    if wrong:
        raise ValueError(f"client_sizes: found {wrong[0]}, allowed are finite numbers > 0")
    shapes = [[param.shape for param in params] for params in client_params]
    for client, found in enumerate(shapes):
        if found != shapes[0]:
            raise ValueError(
                f"client_params: found shapes {[list(shape) for shape in found]} of client {client}, allowed are "
                f"those of client 0, {[list(shape) for shape in shapes[0]]}"
            )
    total = sum(client_sizes)
    return [
        _weighted_mean(tensors, [size / total for size in client_sizes])
        for tensors in zip(*client_params, strict=True)
    ]


def _weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    mean = torch.zeros_like(at_least_float32(tensors[0]))
    for tensor, weight in zip(tensors, weights, strict=True):
        mean += weight * at_least_float32(tensor)
    return mean.to(tensors[0].dtype)
