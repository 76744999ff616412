"""Training methods, a folder each: a mixin over any Trainer, its arguments, and both ready made.

The names are in the `__init__.pyi` of the folders.
"""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
