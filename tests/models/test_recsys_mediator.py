"""A mediator of the newest items, beside a direct path that sees all."""

from typing import Any

import pytest
import torch

from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem

ARCHITECTURES = ("sasrec", "gru", "din", "deepfm")
HISTORY = torch.tensor([[0, 0, 4, 1, 7, 3, 2], [1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 0, 5, 9]])
NEWEST = torch.tensor([[7, 3, 2], [5, 6, 7], [0, 5, 9]])


def recommender(architecture: str, **config: Any) -> SequentialRecommenderForNextItem:
    torch.manual_seed(0)
    sizes = {"num_items": 9, "hidden_size": 8, "max_length": 7, "dropout": 0.0, "direct_rank": 2}
    return SequentialRecommenderForNextItem(
        SequentialRecommenderConfig(architecture=architecture, **sizes, **config)
    ).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_mediator_sees_the_newest_items_and_the_direct_path_all(architecture: str) -> None:
    model, whole = recommender(architecture, mediator_length=3), recommender(architecture)
    found, short, long = model(HISTORY), whole(NEWEST), whole(HISTORY)
    torch.testing.assert_close(found.logits - found.direct_logits, short.logits - short.direct_logits)
    torch.testing.assert_close(found.direct_logits, long.direct_logits)
    assert not torch.allclose(found.logits, short.logits) and not torch.allclose(found.logits, long.logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_where_padding_is_changes_nothing(architecture: str) -> None:
    model = recommender(architecture, mediator_length=3)
    padded = torch.tensor([[4, 0, 1, 7, 3, 2, 0]])
    torch.testing.assert_close(model(padded).logits, model(HISTORY[:1]).logits)
    masked = model(HISTORY[1:2], attention_mask=torch.tensor([[1, 1, 1, 1, 1, 1, 0]])).logits
    torch.testing.assert_close(masked, model(torch.tensor([[0, 1, 2, 3, 4, 5, 6]])).logits)


@pytest.mark.parametrize("architecture", ("sasrec", "gru"))
def test_a_label_at_every_position_is_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match="labels: found"):
        recommender(architecture, mediator_length=3)(HISTORY, labels=torch.ones_like(HISTORY))


@pytest.mark.parametrize("length", (0, -1, 2.5, True))
def test_lengths_that_are_none(length: Any) -> None:
    with pytest.raises(ValueError, match="mediator_length"):
        SequentialRecommenderConfig(mediator_length=length)
