"""Half precision is for storing and multiplying matrices; the equations are computed in at least float32."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
