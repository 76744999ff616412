"""Time, operations and memory of every method next to its peers: `hf-ext bench`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
