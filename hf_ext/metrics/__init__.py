"""Metrics: plain functions on arrays, and folders that `evaluate.load` takes. The names are in `__init__.pyi`."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
