"""A fixed simplex ETF as the classifier of any image or text classifier of transformers."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
