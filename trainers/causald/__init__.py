"""CausalD, distillation from many teachers by the front door (Zhang et al., TKDE 2024), in any Trainer."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
