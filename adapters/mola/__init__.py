"""MoLA, mixture of low-rank adapters for heterogeneous data (Zhou et al., ICML 2024), as a PEFT adapter type.

Not the MoLA of Gao et al. (LoRA experts allocated to the layers of an LLM). Importing this package registers the type.
"""

from hf_ext._versions import require_supported

require_supported("peft", "transformers")

import peft  # noqa: E402, F401 (its import brings parts of this package in, while none of them is half made)

from hf_ext.adapters._register import HfExtPeftType, register_adapter  # noqa: E402
from hf_ext.adapters.mola.config import MoLAConfig  # noqa: E402
from hf_ext.adapters.mola.model import MoLAModel  # noqa: E402
from hf_ext.adapters.mola.router import ImageRouter, TextRouter, register_router  # noqa: E402
from hf_ext.adapters.mola.routing import Routing, find_routing, set_task  # noqa: E402
from hf_ext.adapters.mola.tasks import from_loras  # noqa: E402

register_adapter(HfExtPeftType.MOLA, MoLAConfig, MoLAModel, MoLAModel.prefix)

__all__ = [
    "ImageRouter",
    "MoLAConfig",
    "MoLAModel",
    "Routing",
    "TextRouter",
    "find_routing",
    "from_loras",
    "register_router",
    "set_task",
]
