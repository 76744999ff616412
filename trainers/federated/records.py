"""Tensors in Flower's records, and what is wrong with records that come in."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hf_ext.trainers.federated.flower import Array, ArrayRecord
from hf_ext.trainers.federated.travelling import as_kept, as_sent

#: bytes that numpy's header may take beside an array's values
_HEADER = 4096
_SHOWN = 3

#: shape and dtype of a record's arrays, by name
Layout = Mapping[str, tuple[tuple[int, ...], str]]


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as a record; bfloat16 and other narrow dtypes as float32."""
    return ArrayRecord({name: Array(as_sent(tensor).numpy()) for name, tensor in tensors.items()})


def from_record(record: ArrayRecord, like: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The tensors of a record, in the dtypes of those that they are for.

    Args:
        record: as it came in.
        like: tensors of the same names and shapes.
        what: the record's name in errors.

    Raises:
        ValueError: missing or further names, other shapes or dtypes, more bytes than an array of its shape has, or
            values that are not finite.
    """
    layout = {name: (tuple(tensor.shape), _wire(tensor.dtype)) for name, tensor in like.items()}
    fault = fault_in(record, layout)
    if fault:
        raise ValueError(f"{what}: found {fault}")
    return {
        name: as_kept(torch.from_numpy(np.array(record[name].numpy())), tensor.dtype) for name, tensor in like.items()
    }


def layout_of(record: ArrayRecord) -> Layout:
    """Shape and dtype of a record's arrays, by name."""
    return {name: (tuple(array.shape), array.dtype) for name, array in record.items()}


def fault_in(record: ArrayRecord, layout: Layout, *, of_means: bool = False) -> str | None:
    """What is wrong with a record that should have this layout, in words; None for nothing.

    Nothing is decoded before its size is known to be right, and nothing is ever unpickled.

    Args:
        record: of arrays.
        layout: names, shapes and dtypes that are allowed.
        of_means: dtypes may be any that means of such arrays have.
    """
    missing, further = [*(set(layout) - set(record))], [*(set(record) - set(layout))]
    if missing or further:
        kinds = (("no", missing), ("an unknown", further))
        return ", ".join(f"{kind} tensor {_names(names)}" for kind, names in kinds if names)
    for name, (shape, dtype) in layout.items():
        array = record[name]
        if tuple(array.shape) != shape:
            return f"tensor {name!r} of shape {_shape(array.shape)}, allowed is {_shape(shape)}"
        if array.dtype != dtype and not (of_means or _is_mean_of(array.dtype, dtype)):
            return f"tensor {name!r} of {array.dtype}, allowed is {dtype}"
        if len(array.data) > np.dtype(array.dtype).itemsize * int(np.prod(shape, dtype=np.int64)) + _HEADER:
            return f"tensor {name!r} of {len(array.data)} bytes, allowed are those of shape {_shape(shape)}"
        fault = _fault_in_values(name, array, shape)
        if fault:
            return fault
    return None


def _fault_in_values(name: str, array: Array, shape: tuple[int, ...]) -> str | None:
    try:
        values = array.numpy()
    except Exception as error:  # whatever numpy makes of bytes that are no array
        return f"tensor {name!r} that cannot be read ({error})"
    if values.shape != shape or str(values.dtype) != array.dtype:
        return f"tensor {name!r} that says {array.dtype} of shape {_shape(shape)} and holds something else"
    if not np.isfinite(values).all():
        return f"tensor {name!r} with values that are not finite"
    return None


def restored(record: ArrayRecord, layout: Layout) -> ArrayRecord:
    """A record of means in the dtypes of this layout: integers rounded, floating point as wide as before."""
    arrays = {}
    for name, array in record.items():
        dtype = np.dtype(layout[name][1])
        if array.dtype == str(dtype):
            arrays[name] = array
            continue
        values = array.numpy()
        arrays[name] = Array(np.asarray((values if dtype.kind in "fc" else np.rint(values)).astype(dtype)))
    return ArrayRecord(arrays)


def _wire(dtype: torch.dtype) -> str:
    return str(as_sent(torch.empty(0, dtype=dtype)).numpy().dtype)


def _is_mean_of(found: str, dtype: str) -> bool:
    """Whether a mean of arrays of a dtype may be of another: one of integers, by a server without a guard."""
    return np.dtype(dtype).kind in "iub" and found == "float64"


def _names(names: list[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"
