"""Recommendations: the best items, against a full sort, and what they are called."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_ext.models import SequentialRecommenderConfig, SequentialRecommenderForNextItem
from hf_ext.models.recsys import modeling_recsys, recommending_recsys
from hf_ext.models.recsys.items_recsys import ItemTable

ITEMS, LENGTH = 20, 5
IDS = [100 + 3 * row for row in range(1, ITEMS + 1)]
TITLES = [f"Lamp {row}" for row in range(1, ITEMS + 1)]


def _model(architecture: str = "sasrec", items: Any = None, **config: Any) -> Any:
    torch.manual_seed(0)
    settings = {"num_items": ITEMS, "hidden_size": 8, "max_length": LENGTH, "initializer_range": 0.5, **config}
    model = SequentialRecommenderForNextItem(SequentialRecommenderConfig(architecture=architecture, **settings))
    model.set_items(items)
    return model


def _raw(*rows: int) -> list[int]:
    return [IDS[row - 1] for row in rows]


@pytest.mark.parametrize("size", [1, 3, 7, ITEMS])
@pytest.mark.parametrize("exclude_history", [True, False])
@pytest.mark.parametrize("architecture", ["sasrec", "gru", "din", "deepfm"])
def test_top_items_are_those_of_a_full_sort(
    architecture: str, exclude_history: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(architecture, direct_rank=2)
    monkeypatch.setattr(SequentialRecommenderForNextItem, "chunk_size", lambda *_, **__: size)
    generator = torch.Generator().manual_seed(1)
    histories = torch.randint(0, ITEMS + 1, (6, 9), generator=generator)
    exclude = torch.randint(0, ITEMS + 1, (6, 3), generator=generator)
    scores, rows = model.top_items(histories, 4, exclude_ids=exclude, exclude_history=exclude_history)
    assert model.training and not scores.requires_grad
    everything = model.eval()(histories).logits.detach()
    for place in range(6):
        gone = {*exclude[place].tolist(), *(histories[place].tolist() if exclude_history else [])}
        left = [row for row in range(1, ITEMS + 1) if row not in gone]
        expected = sorted(left, key=lambda row: -float(everything[place, row - 1]))[:4]
        assert rows[place].tolist() == expected
        torch.testing.assert_close(scores[place], everything[place, rows[place] - 1])


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more scores at once than the budget says."""
    monkeypatch.setattr(modeling_recsys, "BUDGET", 4 * 8)
    model, seen = _model(), []
    score = model.score_span
    monkeypatch.setattr(model, "score_span", lambda history, span: seen.append(score(history, span)) or seen[-1])
    model.top_items(torch.ones(4, 2, dtype=torch.int64), 3)
    assert [part.shape for part in seen] == [(4, 8), (4, 8), (4, 4)]


def test_ids_and_titles() -> None:
    model = _model(items=ItemTable(IDS, TITLES)).eval()
    one, several = model.recommend(_raw(3, 1)), model.recommend([_raw(3, 1), np.array(_raw(5))], k=3)
    assert one.rows.shape == one.scores.shape == (1, 10) and one.rows.dtype == torch.int64
    assert one.ids == [_raw(*one.rows[0].tolist())]
    assert one.titles == [[f"Lamp {row}" for row in one.rows[0].tolist()]]
    assert several.ids[0] == one.ids[0][:3] and len(several.titles) == 2
    rows = model.recommend(torch.tensor([[3, 1], [0, 5]]), k=3)
    assert torch.equal(rows.rows, several.rows) and rows.titles == several.titles
    assert torch.equal(model.recommend(torch.tensor([3, 1])).rows, one.rows)
    assert not {3, 1} & set(one.rows[0].tolist())
    assert bool((one.scores.diff() <= 0).all())


def test_items_without_titles_and_without_names() -> None:
    texts = _model(items=SimpleNamespace(ids=[f"sku-{row}" for row in range(ITEMS)], titles=None))
    found = texts.recommend(["sku-3", "sku-4"], k=2)
    assert found.titles == found.ids and all(name.startswith("sku-") for name in found.ids[0])
    nameless = _model()
    found = nameless.recommend(torch.tensor([[4, 5]]), k=2)
    assert found.ids is None and found.titles is None
    assert torch.equal(found.rows, texts.recommend(["sku-3", "sku-4"], k=2).rows)
    with pytest.raises(ValueError, match="history: found raw ids for a model without items"):
        nameless.recommend([4, 5])


def test_the_whole_history_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items older than the model sees, too; where too few are left, fewer are given."""
    model = _model(items=ItemTable(IDS, TITLES))
    history = [*range(1, 18), 17]
    found = model.recommend(_raw(*history), k=5)
    assert sorted(found.rows[0, :3].tolist()) == [18, 19, 20] and found.rows[0, 3:].tolist() == [0, 0]
    assert found.scores[0, 3:].tolist() == [-math.inf] * 2 and len(found.ids[0]) == len(found.titles[0]) == 3
    again = model.recommend(_raw(*history), k=30, exclude_history=False)
    assert again.rows.shape == (1, 30) and len(set(again.ids[0])) == ITEMS
    monkeypatch.setattr(recommending_recsys, "_HISTORIES", 2)
    parts = model.recommend([_raw(row) for row in (1, 2, 3, 4, 5)], k=4)
    monkeypatch.undo()
    assert torch.equal(parts.rows, model.recommend([_raw(row) for row in (1, 2, 3, 4, 5)], k=4).rows)


def test_a_catalogue_of_one_item() -> None:
    model = _model(num_items=1, items=ItemTable(["only"]))
    assert model.recommend(["only"], k=1).ids == [[]]
    assert model.recommend(["only"], exclude_history=False).ids == [["only"]]


def test_modes_are_put_back() -> None:
    model = _model(items=ItemTable(IDS)).train()
    model.model.encoder.dropout.eval()
    before = {name: module.training for name, module in model.named_modules()}
    first = model.recommend(_raw(1, 2, 3))
    assert torch.equal(first.scores, model.recommend(_raw(1, 2, 3)).scores)  # no dropout
    assert {name: module.training for name, module in model.named_modules()} == before
    with pytest.raises(ValueError):
        model.top_items(torch.tensor([[1]]), attention_mask=torch.ones(1, 7))
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [
        ([999999], 3, r"item ids: found 999999, allowed are those of the model's 20 items, such as 103"),
        (["103"], 3, "item ids: found '103', allowed are those"),
        ([103.0], 3, "item ids: found 103.0, allowed are those"),
        ([True], 3, "item ids: found True, allowed are those"),
        ([], 3, "history: found none at place 0, allowed are histories of at least one item"),
        ([[103], []], 3, "history: found none at place 1"),
        (torch.tensor([[1], [0]]), 3, "history: found none at place 1"),
        ([103, [106]], 3, "history: found ids and lists of ids side by side"),
        ("103", 3, "history: found '103', allowed is a list of item ids"),
        (103, 3, "history: found 103, allowed is a list"),
        (torch.tensor([[21]]), 3, "history: found 21, the model's 20 items"),
        (torch.tensor([[1.0]]), 3, "history: found torch.float32"),
        ([103], 0, "k: found 0, allowed are integers >= 1"),
        ([103], 2.5, "k: found 2.5, allowed are integers"),
    ],
)
def test_bad_input(history: Any, k: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        _model(items=ItemTable(IDS)).recommend(history, k=k)
