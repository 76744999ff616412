"""FedGELA, a simplex ETF as the classifier of all clients (Fan et al., NeurIPS 2023), in any Trainer."""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
