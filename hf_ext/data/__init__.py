"""Data: embedded real data sets, one loader for all sources, collators that carry task and domain ids."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
