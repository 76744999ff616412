"""A split hides labels by the protocol it is told."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import Compose

from hf_ext.data.graphs import PUSplit, check_graph
from hf_ext.data.graphs.split import _probabilities, _systematic


def graph(sizes: tuple[int, ...] = (30, 50, 20), unknown: int = 5) -> Data:
    y = torch.cat([torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), torch.full((unknown,), -1)])
    x = torch.randn(len(y), 4, generator=torch.Generator().manual_seed(0))
    return Data(x=x, y=y, edge_index=torch.zeros(2, 0, dtype=torch.int64))


@pytest.mark.parametrize("mechanism", ["scar", "features"])
def test_masks_of_the_sizes_asked_for(mechanism: Any) -> None:
    data = graph()
    split = PUSplit(label_share=0.5, held_out=0.2, mechanism=mechanism)(data)
    check_graph(split)
    assert split.positive_mask.sum() == 20 and split.held_out_mask.sum() == 5
    known = split.positive_mask | split.held_out_mask
    assert (split.y[known] == 1).all() and "positive_mask" not in data
    assert torch.equal(split.pu_y, torch.where(data.y == -1, -1, (data.y == 1).long()))


def test_classes_are_the_largest_or_those_named() -> None:
    assert (Compose([PUSplit()])(graph((3, 9, 9))).pu_y == 1).sum() == 9
    assert PUSplit()(graph((3, 9, 9))).pu_y[3] == 1  # of equals the lower one
    assert (PUSplit(2)(graph()).pu_y == 1).sum() == 20
    assert (PUSplit([0, 2])(graph()).pu_y == 1).sum() == 50
    assert "[0, 2]" not in repr(PUSplit([0, 2])) and "(0, 2)" in repr(PUSplit([0, 2]))


def test_a_seed_says_all_and_torch_s_own_generator_nothing() -> None:
    for mechanism in ("scar", "features"):
        first, again, other = (PUSplit(seed=seed, mechanism=mechanism)(graph()) for seed in (0, 0, 1))
        assert torch.equal(first.positive_mask, again.positive_mask)
        assert torch.equal(first.held_out_mask, again.held_out_mask)
        assert not torch.equal(first.positive_mask, other.positive_mask)
    state = torch.random.get_rng_state()
    PUSplit(mechanism="features")(graph())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_held_out_leaves_no_mask_and_an_old_split_is_replaced() -> None:
    old = PUSplit(0)(graph())
    new = PUSplit(1, held_out=0)(old)
    assert "held_out_mask" not in new and "held_out_mask" in old
    old.unlabeled_mask = ~old.positive_mask
    new = PUSplit(1)(old)
    check_graph(new)
    assert new.unlabeled_mask.sum() == (~old.positive_mask).sum() - 20


def _shares(mechanism: Any, x: Tensor, seeds: int) -> Tensor:
    counts = torch.zeros(len(x))
    for seed in range(seeds):
        data = Data(x=x, y=torch.zeros(len(x), dtype=torch.int64), edge_index=torch.zeros(2, 0, dtype=torch.int64))
        counts += PUSplit(0, 0.3, 0, mechanism, seed)(data).positive_mask
    return counts / seeds


def test_features_decide_only_where_they_shall() -> None:
    x = torch.linspace(-1, 1, 40)[:, None]
    assert (_shares("scar", x, 400) - 0.3).abs().max() < 0.12
    one = PUSplit(0, 0.3, 0, "features", 3)(
        Data(x=x, y=torch.zeros(40, dtype=torch.int64), edge_index=torch.zeros(2, 0, dtype=torch.int64))
    ).positive_mask
    low, high = sorted((int(one[:20].sum()), int(one[20:].sum())))
    assert low + high == 12 and high >= 3 * max(low, 1)
    alike = _shares("features", torch.ones(40, 1), 400)
    assert (alike - 0.3).abs().max() < 0.12


def test_draws_have_exactly_the_probabilities_said() -> None:
    odds = torch.linspace(-3, 3, 12, dtype=torch.float64)
    probabilities = _probabilities(odds, 5)
    assert torch.isclose(probabilities.sum(), torch.tensor(5.0, dtype=torch.float64))
    assert torch.allclose(torch.logit(probabilities).diff(), odds.diff())
    counts = torch.zeros(12)
    for seed in range(4000):
        drawn = _systematic(probabilities, torch.Generator().manual_seed(seed))
        assert len(drawn) == 5 == len(set(drawn.tolist()))
        counts[drawn] += 1
    assert torch.allclose(counts / 4000, probabilities.float(), atol=0.03)
    everything = _systematic(_probabilities(odds, 12), torch.Generator())
    assert sorted(everything.tolist()) == list(range(12))


@pytest.mark.parametrize("mechanism", ["scar", "features"])
def test_every_labelled_node_is_as_likely_to_be_held_out(mechanism: Any) -> None:
    held_out, labelled = torch.zeros(40), torch.zeros(40)
    for seed in range(400):
        split = PUSplit(0, 0.5, 0.3, mechanism, seed)(graph((40,), 0))
        held_out += split.held_out_mask
        labelled += split.positive_mask | split.held_out_mask
    assert (held_out / labelled - 0.3).abs().max() < 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_share": 0}, "label_share: found 0"),
        ({"label_share": 1.5}, "label_share: found 1.5"),
        ({"held_out": 1.0}, "held_out: found 1.0"),
        ({"held_out": float("nan")}, "held_out: found nan"),
        ({"mechanism": "SCAR"}, "mechanism: found 'SCAR', allowed are 'scar', 'features'"),
        ({"seed": -1}, "seed: found -1"),
        ({"positive_classes": []}, r"positive_classes: found \[\]"),
        ({"positive_classes": "1"}, "positive_classes: found '1'"),
        ({"positive_classes": [0.5]}, "positive_classes: found 0.5"),
        ({"positive_classes": True}, "positive_classes: found True"),
        ({"positive_classes": -1}, "positive_classes: found -1"),
        ({"positive_classes": [1, 7]}, "positive_classes: found 7, allowed are 0, 1, 2"),
        ({"positive_classes": 2, "label_share": 0.01}, "label_share: found 0.01, which labels 0 of 20"),
        ({"positive_classes": 2, "label_share": 0.05}, "label_share: found 0.05, which labels 1 of 20"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PUSplit(**options)(graph())


def test_a_graph_without_classes_is_refused() -> None:
    data = graph()
    data.y = torch.full_like(data.y, -1)
    with pytest.raises(ValueError, match="y: found no node of a known class"):
        PUSplit()(data)
    del data.y
    with pytest.raises(ValueError, match="y: found None"):
        PUSplit()(data)
