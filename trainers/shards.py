"""Weights of which every process has a part (FSDP2): the parts, and numbers added up over them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from hf_ext.trainers.finite import batch_statistics

#: adds up a number over the processes that have the other parts
Total = Callable[[Tensor], Tensor]


def own_parts(tensors: Iterable[Any]) -> list[Tensor]:
    """This process's parts of tensors, which share their memory; whole tensors as they are."""
    return [tensor.to_local() if _is_sharded(tensor) else tensor for tensor in tensors]


def total_over_parts(tensors: Iterable[Tensor]) -> Total | None:
    """What adds up a number over all parts of these tensors, each once; None where every process has them whole.

    Where groups of processes hold the same parts (HSDP), that is within a group.

    Raises:
        ValueError: not all of them are divided in the same way.
    """
    layouts = {_layout(tensor) for tensor in tensors}
    if len(layouts) > 1:
        found = ", ".join(sorted("whole" if layout is None else str(layout[0]) for layout in layouts))
        raise ValueError(f"model: found trainable weights that are divided in several ways ({found}), allowed is one")
    layout = next(iter(layouts), None)
    if layout is None:
        return None
    mesh, divides = layout
    groups = [mesh.get_group(dim) for dim, divided in enumerate(divides) if divided]

    def total(value: Tensor) -> Tensor:
        summed = value.to(mesh.device_type, copy=True)
        for group in groups:
            dist.all_reduce(summed, group=group)
        return summed.to(value.device)

    return total


def gather_anew(model: nn.Module) -> None:
    """Have the next forward pass gather sharded weights from their parts, whatever it has kept of an earlier one."""
    sharded: Any
    for sharded in model.modules():
        if hasattr(sharded, "reshard") and hasattr(sharded, "unshard"):
            sharded.reshard()


def share_statistics(model: nn.Module) -> None:
    """Give all processes the main one's statistics of BatchNorms, which FSDP2, unlike DDP, leaves as each has them."""
    for buffer in batch_statistics(model):
        dist.broadcast(buffer, src=0)


def _is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "to_local")


def _layout(tensor: Any) -> tuple[Any, tuple[bool, ...]] | None:
    """A mesh of processes, and which of its dimensions divide the tensor."""
    if not _is_sharded(tensor):
        return None
    return tensor.device_mesh, tuple(placement.is_shard() for placement in tensor.placements)
