"""The rise of a quadratic loss, which is known."""

import pytest
import torch
from torch import nn

from hf_ext.studies.fedlesam.sharpness import sharpness


def test_a_quadratic() -> None:
    """At (1, 0) of 2 a^2 + b^2 / 2 the gradient is (4, 0): along it the rise is 2 ((1 + r)^2 - 1)."""
    a, b = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([0.0]))
    rises = sharpness(lambda: (2 * a**2 + b**2 / 2).sum(), [a, b], along=0.1, around=0.5, directions=2000)
    assert rises["along"] == pytest.approx(2 * (1.1**2 - 1), rel=1e-4)
    # of directions around, the mean of the slope is 0 and that of the curvature half of its trace
    assert rises["around"] == pytest.approx(0.5**2 / 2 * (4 + 1) / 2, rel=0.2)
    assert a.item() == 1.0 and b.item() == 0.0


def test_one_length_over_all_parameters() -> None:
    params = [nn.Parameter(torch.full((3,), 2.0)), nn.Parameter(torch.full((5, 2), 2.0))]
    seen: list[float] = []

    def loss() -> torch.Tensor:
        seen.append(float(sum(((param.detach() - 2) ** 2).sum() for param in params)) ** 0.5)
        return sum((param**2).sum() for param in params)  # type: ignore[return-value]

    sharpness(loss, params, along=0.1, around=0.3, directions=2)
    assert seen == pytest.approx([0, 0.1, 0.3, 0.3], abs=1e-5)
    assert all(bool((param == 2).all()) for param in params)


def test_what_a_loss_does_not_depend_on_is_not_moved_along_it() -> None:
    used, unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    rises = sharpness(lambda: used.sum(), [used, unused], along=0.5, around=0.5, directions=1)
    assert rises["along"] == pytest.approx(0.5) and rises["around"] < 0.5
