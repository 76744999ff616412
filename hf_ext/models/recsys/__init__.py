"""Sequential recommenders: SASRec, GRU, DIN and DeepFM, which recommend titles from a history of item ids."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
