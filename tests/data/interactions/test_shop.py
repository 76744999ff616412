"""The simulated shop: what it sells, and that its equations are those of an open front door."""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch

from hf_ext.data import ShopData, load, simulate_shop


def _small(strength: float, **options: Any) -> ShopData:
    return simulate_shop(
        num_users=4, num_items=5, num_groups=3, num_interests=3, mean_events=10, pushed_share=0.4, strength=strength,
        seed=1, **options
    )  # fmt: skip


def _all_histories(shop: ShopData, length: int) -> np.ndarray:
    return np.array(list(product(range(1, shop.interactions.num_items + 1), repeat=length)))


def _joint(shop: ShopData, histories: np.ndarray) -> np.ndarray:
    """P(x, m, y) with the group summed out, `[X, M, Y]`: what one could count without seeing groups."""
    with_group = np.tile(shop.group_shares, (len(histories), 1))
    for place in range(histories.shape[1]):
        rows, groups = np.indices(with_group.shape)
        nexts = shop.observed(histories[rows.ravel(), :place], groups.ravel())
        with_group = with_group * nexts[np.arange(len(nexts)), histories[rows.ravel(), place] - 1].reshape(rows.shape)
    interest = shop.mediator(histories)
    return np.einsum("xg,xm,mgy->xmy", with_group, interest, shop.outcomes)


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0])
def test_the_front_door_formula_recovers_the_true_effect(strength: float) -> None:
    shop = _small(strength)
    histories = _all_histories(shop, 3)
    joint = _joint(shop, histories)
    assert joint.sum() == pytest.approx(1)
    of_history = joint.sum(axis=(1, 2))
    of_interest = joint.sum(axis=2) / of_history[:, None]
    of_item = joint / joint.sum(axis=2, keepdims=True)
    front_door = np.einsum("xm,z,zmy->xy", of_interest, of_history, of_item)
    assert np.allclose(front_door, shop.true_effect(histories), atol=1e-12)
    seen = joint.sum(axis=1) / of_history[:, None]
    assert np.allclose(seen, shop.observed(histories), atol=1e-12)


def _distance(shop: ShopData, histories: np.ndarray) -> float:
    """Mean total variation between what is and what would be bought after histories."""
    return float(np.abs(shop.observed(histories) - shop.true_effect(histories)).sum(axis=1).mean() / 2)


def test_the_bias_grows_with_the_strength_of_the_confounder_from_none() -> None:
    distances = []
    for strength in (0.0, 0.5, 1.0, 2.0, 3.0):
        shop = simulate_shop(strength=strength, num_users=200, num_items=60)
        rows, offsets = shop.interactions.item_rows, shop.interactions.offsets
        histories = np.stack([rows[start : start + 5] for start in offsets[:-1]])
        distances.append(_distance(shop, histories))
    assert distances[0] < 1e-12
    assert all(later > 1.5 * earlier for earlier, later in pairwise(distances)) and distances[-1] > 0.05


def test_every_interest_may_follow_every_history() -> None:
    shop = simulate_shop(num_users=50)
    histories = np.arange(1, 501)[:, None].repeat(5, axis=1)
    interest = shop.mediator(histories)
    assert np.allclose(interest.sum(axis=1), 1) and interest.min() > 1e-4
    assert interest.max(axis=1).mean() > 0.4  # and yet some are much likelier
    assert np.allclose(shop.mediator(np.zeros((1, 3), dtype=int)), 1 / 8)


def test_probabilities_of_the_next_purchase() -> None:
    shop = _small(2.0)
    histories = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 2, 3], [5, 5, 4, 2, 1, 1]])
    groups = np.array([0, 1, 2])
    for found in (shop.true_effect(histories), shop.observed(histories), shop.observed(histories, groups)):
        assert found.shape == (3, 5) and np.allclose(found.sum(axis=1), 1)
    assert np.allclose(shop.true_effect(histories)[0], shop.observed(histories)[0])  # nothing known, nothing told
    by_group = np.stack([shop.observed(histories, np.full(3, group)) for group in range(3)], axis=1)
    assert np.allclose(np.einsum("bg,bgy->by", shop.group_posterior(histories), by_group), shop.observed(histories))
    assert np.allclose(by_group.mean(axis=1), shop.true_effect(histories))
    cut = shop.true_effect(histories[:, 1:])
    assert np.allclose(cut, shop.true_effect(histories))  # five purchases make an interest


def test_purchases_follow_the_equations() -> None:
    shop = simulate_shop(num_users=3000, num_items=6, num_groups=2, num_interests=2, mean_events=40, strength=1.5)
    log = shop.interactions
    firsts = log.item_rows[log.offsets[:-1]]
    for group in range(2):
        found = np.bincount(firsts[shop.groups == group], minlength=7)[1:] / (shop.groups == group).sum()
        assert np.allclose(found, shop.observed([[0]], [group])[0], atol=0.04)
    last = np.array([log.item_rows[end - 6 : end - 1] for end in log.offsets[1:][np.diff(log.offsets) >= 6]])
    taken = log.item_rows[log.offsets[1:][np.diff(log.offsets) >= 6] - 1]
    expected = shop.observed(last, shop.groups[np.diff(log.offsets) >= 6])
    assert np.allclose(np.bincount(taken, minlength=7)[1:] / len(taken), expected.mean(axis=0), atol=0.03)
    score = np.log(expected[np.arange(len(taken)), taken - 1]).mean()
    assert score > np.log(expected.mean(axis=0)[taken - 1]).mean() + 0.02  # each history tells something


def test_a_shop_as_data() -> None:
    shop, again, other = simulate_shop(num_users=60), simulate_shop(num_users=60), simulate_shop(num_users=60, seed=1)
    assert shop.interactions.digest == again.interactions.digest != other.interactions.digest
    log, rows = shop.interactions, load("shop", num_users=60)["train"]
    assert rows.column_names == ["user_id", "item_id", "timestamp", "title"] and len(rows) == len(log)
    assert rows["item_id"][:] == log.item_rows.tolist()
    assert rows[0]["title"] == log.items.title(log.item_rows[0])
    assert log.tied_share == 0


def test_few_users_have_much_of_the_activity_and_few_items_of_the_sales() -> None:
    log = simulate_shop().interactions
    activity = np.sort(np.diff(log.offsets))[::-1]
    sales = np.sort(np.bincount(log.item_rows)[1:])[::-1]
    assert 50_000 < len(log) < 70_000 and activity[-1] >= 5
    assert activity[:200].sum() > 0.5 * len(log) and sales[:100].sum() > 0.5 * len(log)
    assert len(set(log.items.titles or [])) == 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_users": 0}, "num_users: found 0"),
        ({"num_items": 1}, "num_items: found 1"),
        ({"strength": -1}, "strength: found -1"),
        ({"strength": float("nan")}, "strength: found nan"),
        ({"pushed_share": 2}, "pushed_share: found 2"),
        ({"mean_events": 1}, "mean_events: found 1"),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_shop(**options)


def test_histories_and_groups_that_are_none() -> None:
    shop = _small(1.0)
    for histories in ([1, 2], [[1.0, 2.0]], [[1, 6]], [[-1, 2]]):
        with pytest.raises(ValueError, match="histories: found"):
            shop.true_effect(histories)
    with pytest.raises(ValueError, match="histories: found 0 after an item"):
        shop.true_effect([[1, 0]])
    for groups in ([0], [0, 3], [0.0, 1.0], [-1, 0]):
        with pytest.raises(ValueError, match="groups: found"):
            shop.observed([[1], [2]], groups)
