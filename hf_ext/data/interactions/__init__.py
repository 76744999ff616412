"""Interactions of users and items: read, split by time, and served as rows for models of the next item."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
