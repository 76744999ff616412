"""RD, reprogramming distillation: a student and what a frozen teacher's features are made of for it."""

import lazy_loader
import transformers.models.auto.modeling_auto  # noqa: F401 (first, for its import brings the model to register it)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
