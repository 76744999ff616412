"""Which tensors of a model travel between a server and its clients."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from hf_ext._models import unwrapped

#: dtypes that numpy has not, or that a mean would be too coarse in; they travel as float32
_NARROW = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


def travelling_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that travel, themselves, by their names in its state dict.

    These are its trainable parameters, so of a PEFT model those of the adapter alone, and the persistent buffers
    beside them (statistics of BatchNorm): the closest module around a buffer that has parameters has a trainable one.
    Tied weights are there once, under the first of their names. A module may name buffers that are the same everywhere
    in its attribute `stays_home`; these do not travel.

    Raises:
        ValueError: a model without trainable parameters.
    """
    model = unwrapped(model)
    modules = dict(model.named_modules())
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if tensor.requires_grad if isinstance(tensor, nn.Parameter) else _moves(modules, name):
            tensors[name] = tensor
    if not any(isinstance(tensor, nn.Parameter) for tensor in tensors.values()):
        raise ValueError("model: found no trainable parameters, allowed is one with some")
    return tensors


def _moves(modules: Mapping[str, nn.Module], buffer: str) -> bool:
    """Whether a persistent buffer belongs to something that is trained."""
    owner, _, attribute = buffer.rpartition(".")
    if attribute in getattr(modules.get(owner), "stays_home", ()):
        return False
    for module in _outwards(modules, owner):
        parameters = list(module.parameters())
        if parameters:
            return any(parameter.requires_grad for parameter in parameters)
    return False


def _outwards(modules: Mapping[str, nn.Module], name: str) -> Iterator[nn.Module]:
    while name:
        if name in modules:
            yield modules[name]
        name = name.rpartition(".")[0]
    yield modules[""]


def as_sent(tensor: Tensor) -> Tensor:
    """A tensor as it travels: on the CPU, in a dtype that numpy has and that means are exact enough in."""
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.dtype in _NARROW else tensor


def as_kept(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor that has travelled, in the dtype it has in a model; integers, which a mean makes fractions, rounded."""
    is_mean = tensor.is_floating_point() and not (dtype.is_floating_point or dtype.is_complex)
    return (tensor.round() if is_mean else tensor).to(dtype)


@torch.no_grad()
def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put values into the tensors of a model that travel; the names and shapes are those of `travelling_tensors`."""
    own = travelling_tensors(model)
    for name, value in tensors.items():
        own[name].copy_(value)
