"""GPL, learning from positive and unlabelled nodes of a graph (Wu et al., ICML 2024), in any Trainer."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
