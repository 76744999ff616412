"""What the processes of a training share: rows with their gradients, averages, and decisions."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

T = TypeVar("T")


def rows_of_processes(rows: list[int], device: torch.device) -> list[list[int]]:
    """The same number of numbers from every process, by process: one small message."""
    own = torch.tensor(rows, device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return [numbers.tolist() for numbers in gathered]


def all_rows(rows: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Rows of all processes in their order, `[b, ...] -> [B, ...]`, without a gradient.

    Args:
        rows: of this process.
        sizes: how many rows each process has; by default as many as this one.
    """
    most = len(rows) if sizes is None else max(sizes)
    filled = rows if len(rows) == most else torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    gathered = [torch.empty_like(filled) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, filled.contiguous())
    return torch.cat([part[:size] for part, size in zip(gathered, sizes or [most] * len(gathered), strict=True)])


def first_row(rows: int, sizes: Sequence[int] | None = None) -> int:
    """Where this process's rows begin among those of all; `sizes` as for `all_rows`."""
    rank = dist.get_rank()
    return rank * rows if sizes is None else sum(sizes[:rank])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int] | None) -> Tensor:
        first = first_row(len(rows), sizes)
        ctx.own = slice(first, first + len(rows))
        return all_rows(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.own] * dist.get_world_size(), None


def gather_rows(rows: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Rows of all processes, `[b, ...] -> [B, ...]`, for a loss that every process computes alike from all of them.

    The gradient of a process's own rows is multiplied by the number of processes, so that after DDP's averaging it is
    the gradient of that one loss.

    Args:
        rows: of this process.
        sizes: how many rows each process has; by default as many as this one.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows, sizes)


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


def check_rows_of_processes(trainer: Any) -> None:
    """Refuse processes that have rows in common, or parts of them: each is taken for one with rows of its own.

    Losses are averaged, rows gathered and counted over all processes. And weights that no FSDP of accelerate shards,
    whose forward passes the processes have to take together without anything that says so.

    Raises:
        ValueError: tensor, context or sequence parallelism, or a model that was sharded as it was loaded.
    """
    sizes = {f"{kind}_size": getattr(trainer, f"get_{kind}_size")() for kind in ("tp", "cp", "sp")}
    if shared := ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1):
        raise ValueError(
            f"parallelism_config: found {shared}, allowed are dp_replicate_size and dp_shard_size: "
            f"{type(trainer).__name__} takes the rows of every process for its own"
        )
    if getattr(trainer, "is_distributed_loading_by_transformers", False):
        raise ValueError(
            "model: found weights sharded as they were loaded (distributed_config), allowed are whole ones, which "
            "fsdp=True shards"
        )


def model_of(trainer: Any) -> Any:
    """The model to pass rows through besides training: bare, unless it is sharded."""
    return trainer.model_wrapped if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled else trainer.model
