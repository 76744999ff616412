"""The FER matcher: faces matched to text embeddings of expressions."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
