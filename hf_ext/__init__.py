"""Research methods as parts of the Hugging Face ecosystem.

Importing this package is light (no torch), yet enough for peft to know its adapter types and for transformers' Auto
classes to know its models: both are registered when those libraries are imported. The names in `__init__.pyi` are
imported on first use.
"""

from pathlib import Path

import lazy_loader

__version__ = "0.1.0"

_package = Path(__file__).resolve().parent
if not (_package / "trainers").is_dir():  # a source checkout, where the other sub-packages are sibling folders
    __path__.append(str(_package.parent))

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

from hf_ext._registration import install  # noqa: E402 (installing may import sub-packages)

install()
