"""Federated training of any Trainer: a client's side as mixins, and what runs them on Flower."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
