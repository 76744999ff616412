"""The classifier: a simplex equiangular tight frame that is never trained, of features that are normalised."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_etf import check_view
from .portable import as_number

etf_logits: Any
try:  # the files of this folder also travel alone, without the package
    from hf_ext.functional import etf_logits, narrow_simplex_etf, random_orthonormal, scaled_etf, simplex_etf
except ImportError:
    etf_logits = None


class ETFClassifier(nn.Module):
    """Logits `f(x) (M phi) / temperature`, with `M` a simplex ETF: all pairs of classes equally far apart.

    `M`, the buffer `weight` `[d, C]`, follows from the seed, is saved all the same, and is never trained. The weights
    of classes `phi` are `class_weights`, `[C]` or None (the global view); they are saved nowhere.

    Args:
        hidden_size: width of the features.
        num_labels: C.
        seed: of `M`.
        temperature: by default 0.1 with `"l2"`, else 1.
        feature_norm: `"l2"`, features of length 1; `"batch"`, a BatchNorm without parameters; `"none"`.
        projection_size: width of a learnt linear layer between features and `M`; none by default.

    Raises:
        ValueError: a value that is not allowed, or features too narrow for a simplex: d < C - 1.
        ImportError: a new `M` where hf_ext is not installed; a saved one needs nothing.
    """

    #: buffers that follow from the configuration: the same everywhere, they need not travel in a federation
    stays_home = ("weight",)
    weight: Tensor
    _class_weights: Tensor | None
    _local: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        num_labels: int,
        *,
        seed: int = 0,
        temperature: float | None = None,
        feature_norm: str = "l2",
        projection_size: int | None = None,
    ) -> None:
        super().__init__()
        self.in_features = as_number(hidden_size, "hidden_size", at_least=1, integer=True)
        self.out_features = as_number(num_labels, "num_labels", at_least=2, integer=True)
        self.seed = as_number(seed, "seed", at_least=0, integer=True)
        self.feature_norm, self.temperature = check_view(feature_norm, temperature)
        if projection_size is not None:
            projection_size = as_number(projection_size, "projection_size", at_least=1, integer=True)
        width = self.in_features if projection_size is None else projection_size
        _check_width(width, self.out_features, "hidden_size" if projection_size is None else "projection_size")
        self.projection = None if projection_size is None else nn.Linear(self.in_features, projection_size)
        self.norm = _norm(self.feature_norm, width)
        self._awaited = torch.get_default_device().type == "meta"  # transformers is about to load it
        self.register_buffer("weight", torch.empty(width, self.out_features) if self._awaited else self._etf(width))
        self.register_buffer("_class_weights", None, persistent=False)
        self.register_buffer("_local", None, persistent=False)  # M phi, computed once

    def _etf(self, width: int) -> Tensor:
        """`M` of the seed, float32 `[width, C]`, the same on every machine but for rounding."""
        if etf_logits is None:
            raise ImportError("hf_ext is not installed: a new simplex ETF needs it; one that was saved does not")
        classes, generator = self.out_features, torch.Generator().manual_seed(self.seed)
        if width >= classes:
            etf = simplex_etf(random_orthonormal(width, classes, generator=generator))
        else:
            etf = narrow_simplex_etf(random_orthonormal(width, width, generator=generator))
        return etf.float().contiguous()  # as it is read from a file: products of other layouts round otherwise

    def reset_if_empty(self) -> None:
        """Put `M` of the seed in place where transformers awaited one and its file had none, or another one."""
        is_read = getattr(self.weight, "_is_hf_initialized", False)
        if self._awaited and not self.weight.is_meta and not is_read:
            with torch.no_grad():
                self.weight.copy_(self._etf(len(self.weight)))

    def set_view(self, *, feature_norm: str | None = None, temperature: float | None = None) -> None:
        """Change feature norm or temperature; `M` stays. A new norm without a temperature takes its own default.

        Raises:
            ValueError: a value that is not allowed.
        """
        if feature_norm is None:
            self.temperature = check_view(self.feature_norm, temperature or self.temperature)[1]
            return
        changed = feature_norm != self.feature_norm
        self.feature_norm, self.temperature = check_view(
            feature_norm, temperature if temperature is not None or changed else self.temperature
        )
        if changed:
            norm = _norm(feature_norm, len(self.weight))
            self.norm = None if norm is None else norm.to(self.weight.device, self.weight.dtype)

    @property
    def class_weights(self) -> Tensor | None:
        """`phi`, `[C]`: mean 1, 0 for a class that is missing; None is the global view. Saved nowhere."""
        return self._class_weights

    @class_weights.setter
    def class_weights(self, weights: Tensor | None) -> None:
        weights = None if weights is None else weights.detach().to(self.weight.device)
        self._local = None if weights is None else scaled_etf(self.weight.detach(), weights)
        self._class_weights = weights

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[..., C]` of features `[..., hidden_size]`, of their dtype; computed in at least float32."""
        dtype = features.dtype
        if self.projection is not None:
            features = self.projection(features)
        matrix = self.weight if self._local is None else self._local
        return _logits(self._normalised(features), matrix, self.temperature).to(dtype)

    def _normalised(self, features: Tensor) -> Tensor:
        features = _at_least_float32(features)
        if self.feature_norm == "l2":
            return F.normalize(features, dim=-1)
        if self.norm is None:
            return features
        flat = features.reshape(-1, features.shape[-1]).to(self.norm.running_mean.dtype)
        return self.norm(flat).reshape(features.shape)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.class_weights = self._class_weights  # of the M that may have been loaded

    def extra_repr(self) -> str:
        norm = f"feature_norm={self.feature_norm!r}, temperature={self.temperature}"
        return f"{self.in_features}, {self.out_features}, seed={self.seed}, {norm}"


def _check_width(width: int, classes: int, argument: str) -> None:
    if width < classes - 1:
        raise ValueError(
            f"{argument}: found {width} for {classes} classes, whose simplex takes at least {classes - 1} dimensions; "
            f"allowed is projection_size={classes - 1} or more, a learnt linear layer of that width before it"
        )


def _norm(feature_norm: str, width: int) -> Any:
    return nn.BatchNorm1d(width, affine=False) if feature_norm == "batch" else None


def _logits(features: Tensor, matrix: Tensor, temperature: float) -> Tensor:
    if etf_logits is not None:
        logits: Tensor = etf_logits(features, matrix, temperature=temperature)
        return logits
    with torch.autocast(features.device.type, enabled=False):
        matrix = _at_least_float32(matrix)
        dtype = torch.promote_types(features.dtype, matrix.dtype)
        return features.to(dtype) @ matrix.to(dtype) / temperature


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


__all__ = ["ETFClassifier"]
