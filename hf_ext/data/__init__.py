"""Data: embedded real data sets, one loader for all sources, collators that carry task and domain ids."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
