"""FedGELA, bilateral curation for partially class-disjoint data (NeurIPS 2023)."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
