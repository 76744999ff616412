"""Comparisons of every method with its baselines that anyone can re-run: `hf-ext reproduce`."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
