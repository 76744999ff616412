"""Research methods as parts of the Hugging Face ecosystem.

Importing this package is light (no torch), yet enough for peft to know its adapter types and for transformers' Auto
classes to know its models: both are registered when those libraries are imported. The names in `__init__.pyi` are
imported on first use.
"""

from pathlib import Path

__version__ = "0.1.0"

_package = Path(__file__).resolve().parent
if not (_package / "trainers").is_dir():  # a source checkout, where the other sub-packages are sibling folders
    __path__.append(str(_package.parent))

from hf_ext._lazy import attach_stub  # noqa: E402 (sub-packages are to be found first)
from hf_ext._registration import install  # noqa: E402

__getattr__, __dir__, __all__ = attach_stub(__name__, __path__)

install()
