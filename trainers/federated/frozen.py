"""Whether server and clients have the same frozen weights: these do not travel, and a mean of adapters needs them."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_ext._models import unwrapped
from hf_ext.trainers.federated.travelling import travelling_tensors

_NAMES, _SUMS = "frozen-names", "frozen-sums"
_AT_EACH_END, _VALUES = 8, 64


def frozen_facts(model: nn.Module) -> dict[str, Any]:
    """What a server says of its frozen weights, for a ConfigRecord: names and checksums of some.

    These are some of the first and of the last tensors that do not travel, and of each some values, as bfloat16: a
    copy of the model in another floating-point dtype has the same. Empty where all travels.
    """
    tensors = _frozen(model)
    names = list(tensors)
    chosen = dict.fromkeys([*names[:_AT_EACH_END], *names[-_AT_EACH_END:]])
    sums = {name: _checksum(tensors[name]) for name in chosen}
    return {_NAMES: list(sums), _SUMS: list(sums.values())} if sums else {}


def check_frozen(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Refuse a client's model whose frozen weights are not the server's, where the server says what they are.

    Tensors that one of them has not, or has in a form that is not floating point (quantised), are not compared.

    Raises:
        ValueError: another value; it names the tensor.
    """
    expected = dict(zip(config.get(_NAMES, ()), config.get(_SUMS, ()), strict=False))
    tensors = _frozen(model) if expected else {}
    for name, checksum in expected.items():
        if name in tensors and _checksum(tensors[name]) != checksum:
            raise ValueError(
                f"model: found other values in {name!r}, which is not trained, than the server has, allowed is a "
                "model that starts from the same ones"
            )


def _frozen(model: nn.Module) -> dict[str, Tensor]:
    own = unwrapped(model)
    travelling = travelling_tensors(own)
    ids = {id(tensor) for tensor in travelling.values()}
    state = own.state_dict(keep_vars=True)
    return {
        name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and id(tensor) not in ids and tensor.is_floating_point() and not tensor.is_meta
    }


@torch.no_grad()
def _checksum(tensor: Tensor) -> int:
    flat = tensor.detach().flatten()
    step = max(1, len(flat) // _VALUES)
    values = flat[::step].to("cpu", torch.bfloat16).contiguous()
    return zlib.crc32(values.view(torch.int16).numpy().tobytes(), zlib.crc32(repr(tuple(tensor.shape)).encode()))
