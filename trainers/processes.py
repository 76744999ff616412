"""What the processes of a training share: rows with their gradients, averages, and decisions."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

T = TypeVar("T")


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        ctx.own = slice(dist.get_rank() * rows.shape[0], (dist.get_rank() + 1) * rows.shape[0])
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0][ctx.own] * dist.get_world_size()


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, `[B, ...] -> [N B, ...]`, for a loss that every process computes alike from all of them.

    The gradient of a process's own rows is multiplied by the number of processes, so that after DDP's averaging it is
    the gradient of that one loss. Every process must bring the same number of rows.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows)


def rows_per_process(args: Any, rows: int) -> int:
    """Rows of a micro-batch in each process, of which `rows` are configured: `split_batches` divides them."""
    return rows // args.world_size if args.accelerator_config.split_batches else rows


def average_over_processes(tensors: list[Tensor]) -> None:
    """In place, over processes; one message per dtype."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # in one order in all processes
        same_dtype = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same_dtype])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for tensor, part in zip(same_dtype, flat.split([tensor.numel() for tensor in same_dtype]), strict=True):
            tensor.copy_(part.view_as(tensor))


def decided_by_main(decide: Callable[[], T]) -> T:
    """What the main process decides, in all processes.

    Raises:
        ValueError: in all of them, where the main one meets it.
    """
    decision: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            decision[0] = decide()
        except ValueError as error:
            decision[1] = str(error)
    broadcast_object_list(decision)
    if decision[1] is not None:
        raise ValueError(decision[1])
    return decision[0]


def model_of(trainer: Any) -> Any:
    """The model to pass rows through besides training: bare, unless it is sharded."""
    return trainer.model_wrapped if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled else trainer.model
