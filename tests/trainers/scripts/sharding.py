"""Importing this has accelerate shard weights (FSDP2) on CPUs too, where it leaves them whole, over gloo."""

import os
import sys
from typing import Any, NoReturn

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_init = AcceleratorState.__init__


def _sharding(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
        return
    if self.mixed_precision != "no":
        fsdp_plugin.set_mixed_precision(self.mixed_precision)
    self.fsdp_plugin = fsdp_plugin
    self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


AcceleratorState.__init__ = _sharding  # type: ignore[method-assign]


def forget_sharding() -> None:
    """Have the next Trainer of this process decide anew: what the last one decided stays in the environment."""
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        os.environ.pop(name, None)


def end() -> NoReturn:
    """End this process without the interpreter's own end, which gloo's threads may abort.

    Sharded weights refer to their process groups, so that these live, and hold tensors, after they are destroyed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
