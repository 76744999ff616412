"""The FER matcher: faces matched to text embeddings of expressions."""

import lazy_loader
import transformers.models.auto.modeling_auto  # noqa: F401 (first, for its import brings the model to register it)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
