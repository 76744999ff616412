"""RD, reprogramming distillation: a student and what a frozen teacher's features are made of for it."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
