"""FedLESAM, federated sharpness-aware minimization with locally estimated global perturbations (ICML 2024)."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
