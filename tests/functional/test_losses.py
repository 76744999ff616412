"""The loss of every sample: what transformers' models take the mean of."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ext.functional import per_sample_losses


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_classes(smoothing: float) -> None:
    logits, labels = _draw(4, 3), torch.tensor([2, 0, 0, 1])
    target = F.one_hot(labels, 3) * (1 - smoothing) + smoothing / 3
    expected = [-(row * (z - z.exp().sum().log())).sum() for row, z in zip(target, logits, strict=True)]
    torch.testing.assert_close(per_sample_losses(logits, labels, label_smoothing=smoothing), torch.stack(expected))


def test_several_labels() -> None:
    logits = _draw(4, 3)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    right = torch.where(labels == 1, logits, -logits).sigmoid()
    torch.testing.assert_close(per_sample_losses(logits, labels), -right.log().mean(1))
    torch.testing.assert_close(per_sample_losses(logits[:, :2], labels[:, :2]), -right[:, :2].log().mean(1))


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_number(shape: tuple[int, ...]) -> None:
    logits, labels = _draw(4, 1), torch.tensor([0.0, 2.0, -1.0, 0.5])
    expected = [(z.item() - y) ** 2 for z, y in zip(logits, labels.tolist(), strict=True)]
    assert per_sample_losses(logits, labels.view(shape)).tolist() == pytest.approx(expected)


def test_several_numbers() -> None:
    logits, labels = _draw(4, 3), _draw(3, 4).t()
    expected = [sum((z - y) ** 2 for z, y in zip(*rows, strict=True)) / 3 for rows in zip(logits, labels, strict=True)]
    torch.testing.assert_close(per_sample_losses(logits, labels, regression=True), torch.stack(expected))


@pytest.mark.parametrize("shift", [False, True])
def test_tokens(shift: bool) -> None:
    """The mean over a sample's own tokens; 0 where none is left."""
    logits, labels = _draw(3, 4, 5), torch.tensor([[1, 2, 3, 4], [4, -100, 0, -100], [-100, -100, -100, -100]])
    expected = []
    for z, y in zip(logits, labels, strict=True):
        pairs = list(zip(z[:-1], y[1:], strict=True) if shift else zip(z, y, strict=True))
        terms = [row.exp().sum().log() - row[token] for row, token in pairs if token >= 0]
        expected.append(sum(term.item() for term in terms) / max(len(terms), 1))
    losses = per_sample_losses(logits, labels, shift_labels=shift)
    assert losses.tolist() == pytest.approx(expected) and losses[2] == 0


def test_half_precision_is_computed_in_float32() -> None:
    logits, labels = _draw(4, 3).bfloat16(), torch.tensor([2, 0, 0, 1])
    torch.testing.assert_close(per_sample_losses(logits, labels), per_sample_losses(logits.float(), labels))


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(3).long(), torch.zeros(4, 3).long(), torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 1)],
    ids=["too few", "matrix of integers", "one number", "other width", "column"],
)
def test_what_does_not_fit_is_refused(labels: Tensor) -> None:

    with pytest.raises(ValueError, match=r"labels: found torch\.\w+ of shape"):
        per_sample_losses(torch.zeros(4, 3), labels)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_output_is_a_regression_of_labels_of_any_dtype(shape: tuple[int, ...]) -> None:
    logits, labels = torch.randn(4, 1), torch.tensor([3, 0, 1, 2]).reshape(shape)
    expected = (logits.reshape(-1) - labels.reshape(-1)).square()
    torch.testing.assert_close(per_sample_losses(logits, labels), expected)
    torch.testing.assert_close(per_sample_losses(logits, labels.double()), expected)
