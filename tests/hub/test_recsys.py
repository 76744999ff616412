"""Recommenders through the Hub: pushed with their items, and pulled with and without this package."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from server import Hub

pytestmark = pytest.mark.slow

PUSH = """
import torch
from hf_ext.models import SequentialRecommenderForNextItem
from hf_ext.models.recsys.items_recsys import ItemTable

torch.manual_seed(0)
items = ItemTable([11, 22, 33, 44, 55], ["Lamp", "Chair", "Table", "二", "Shelf"])
model = SequentialRecommenderForNextItem.from_items(items, architecture="sasrec", hidden_size=8, initializer_range=0.5)
{push}
result = model.recommend([11, 33], k=3).titles[0]
"""
PULL = """
import {imports}sys
from transformers import AutoModel

class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_ext" and {without}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
model = AutoModel.from_pretrained("me/shop"{options})
result = [type(model).__module__.split(".")[0], model.recommend([11, 33], k=3).titles[0]]
"""


@pytest.mark.parametrize(
    "push",
    ['model.push_to_hub("me/shop")', 'model.save_pretrained("shop", push_to_hub=True, repo_id="me/shop")'],
    ids=["push_to_hub", "save_pretrained"],
)
def test_by_id_with_and_without_this_package(push: str, hub: Hub, in_process: Callable[..., Any]) -> None:
    pushed = in_process(PUSH.format(push=push))
    files = hub.repos["me/shop"].files()
    assert {"config.json", "model.safetensors", "items.json", "modeling_recsys.py", "portable.py"} <= set(files)
    assert json.loads(files["items.json"])["ids"] == [11, 22, 33, 44, 55]
    here = in_process(PULL.format(imports="hf_ext, ", without=False, options=""))
    there = in_process(PULL.format(imports="", without=True, options=", trust_remote_code=True"))
    assert here == ["hf_ext", pushed]
    assert there == ["transformers_modules", pushed]
    offline = PULL.format(imports="hf_ext, ", without=False, options="")
    assert in_process(offline, HF_HUB_OFFLINE="1") == here
