"""Models in the sense of transformers, a folder each: configuration, model and what prepares its inputs.

The names are in `__init__.pyi`. The files of a folder travel to the Hub with a model: they import each other with one
dot, torch and transformers, and this package only where it may be missing.
"""

from hf_ext._lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)
