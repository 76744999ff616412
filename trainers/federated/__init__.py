"""Federated training of any Trainer's model on Flower, and methods for it."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
