"""Frozen weights do not travel, and have to be the same everywhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from federation import factory, run_federation, tiny_vit
from flwr.app import Context
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig, get_peft_model

from hf_ext.models import replace_classifier
from hf_ext.trainers.federated import FedGELAConfig, FedGELATrainer, client_app, server_app
from hf_ext.trainers.federated.frozen import check_frozen, frozen_facts


def with_lora(seed: int = 0) -> Any:
    return get_peft_model(tiny_vit(seed), LoraConfig(r=2, target_modules=["q_proj"]))


def run(make_of: Any, at_the_server: Any) -> list[str]:
    server = server_app(lambda _: FedAvg(), at_the_server, num_rounds=1)
    run_federation(server, client_app(make_of), 2)
    return server.ledger.left_out


def test_adapters_on_another_base_are_refused(tmp_path: Path) -> None:
    def at(seed: int) -> Any:
        return factory(output_dir=tmp_path, make_model=lambda: with_lora(seed))

    assert run(at(0), at(0)) == []
    lines = run(at(1), at(0))
    assert len(lines) == 4  # in training and in evaluation
    assert all("model: found other values in 'base_model.model.vit" in line for line in lines)


def test_a_simplex_of_another_seed_is_refused(tmp_path: Path) -> None:
    def at(seed: int) -> Any:
        make_model = lambda: replace_classifier(tiny_vit(), seed=seed)  # noqa: E731
        return factory(FedGELATrainer, FedGELAConfig, output_dir=tmp_path, make_model=make_model)

    assert run(at(0), at(0)) == []
    assert all("classifier.weight', which is not trained" in line for line in run(at(1), at(0)))


def test_a_frozen_head_of_ones_own_is_refused() -> None:
    first, second = with_lora(), with_lora()
    with torch.no_grad():
        second.get_base_model().classifier.bias += 1
    check_frozen(first, frozen_facts(first))
    with pytest.raises(ValueError, match=r"classifier.bias"):
        check_frozen(second, frozen_facts(first))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_is_the_same_model(dtype: torch.dtype) -> None:
    check_frozen(with_lora().to(dtype), frozen_facts(with_lora()))


def test_where_all_travels_nothing_is_said(tmp_path: Path) -> None:
    assert frozen_facts(tiny_vit()) == {}
    check_frozen(tiny_vit(1), {})
    check_frozen(with_lora(), frozen_facts(tiny_vit()))


def test_a_context_is_no_part_of_it(tmp_path: Path) -> None:
    """The facts are the same for every client: they go into one ConfigRecord."""
    make = factory(output_dir=tmp_path, make_model=with_lora)
    facts = [frozen_facts(make(Context(1, 1, {"partition-id": client}, None, {})).model) for client in range(2)]
    assert facts[0] == facts[1] and facts[0]
