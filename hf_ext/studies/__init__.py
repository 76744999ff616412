"""Comparisons of every method with its baselines that anyone can re-run: `hf-ext reproduce`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
