"""Nodes of a graph that may be positive: graph neural networks for learning from positives and unlabelled nodes."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
