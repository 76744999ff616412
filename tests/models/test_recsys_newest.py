"""Recommenders compute the last layer where it is needed: at the newest item, or at all of them."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem

#: left-padded, one full, one empty, one with a gap
HISTORIES = torch.tensor([[0, 0, 3, 1, 2], [4, 5, 6, 7, 8], [0, 0, 0, 0, 0], [9, 0, 1, 0, 0]])


def _model(architecture: str) -> SequentialRecommenderForNextItem:
    torch.manual_seed(0)
    config = SequentialRecommenderConfig(
        architecture=architecture,
        num_items=9,
        hidden_size=8,
        max_length=5,
        num_hidden_layers=2,
        dropout=0.0,
        initializer_range=0.5,
    )
    return SequentialRecommenderForNextItem(config).double()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", ["sasrec", "gru"])
def test_the_newest_state_alone_is_that_of_all(architecture: str, lora: bool) -> None:
    model: Any = _model(architecture)
    if lora and architecture == "sasrec":
        targets = ["query_key_value", "attention_output", "intermediate", "output"]
        peft = get_peft_model(model, LoraConfig(target_modules=targets, init_lora_weights=False))
        model = peft.base_model.model
    gradients = []
    for everywhere in (True, False):
        model.zero_grad()
        history = model.encode(HISTORIES, everywhere=everywhere)
        assert (history.states is not None) == everywhere
        (history.mediator**2).sum().backward()
        trained = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        gradients.append((history.mediator.detach(), trained))
    (one, own), (other, others) = gradients
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert own.keys() == others.keys() and len(own) > 4
    for name, gradient in own.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-9, atol=1e-9)
    assert (other[2] == 0).all() and (other[0] != 0).any()


def test_padding_changes_nothing_of_the_newest_state() -> None:
    model = _model("sasrec")
    short, long = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 0, 1, 2, 3]])
    found = [model.encode(history).mediator for history in (short, long)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
