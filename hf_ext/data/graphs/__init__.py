"""Graphs with known positives: read, split, checked, and served whole or as sampled neighbourhoods."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
