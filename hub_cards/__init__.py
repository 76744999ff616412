"""Model cards written from what ran."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
