"""FedLESAM, locally estimated global perturbations (Fan et al., ICML 2024), at a client of any Trainer."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
