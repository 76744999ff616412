"""RD, reprogramming distillation: a student and what a frozen teacher's features are made of for it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
