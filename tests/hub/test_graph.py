"""Models of graphs through the Hub: pushed, and pulled with and without this package."""

from collections.abc import Callable
from typing import Any

import pytest
from server import Hub

pytestmark = pytest.mark.slow

GRAPH = """
import torch
x, edge_index = torch.eye(4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
"""
PUSH = (
    GRAPH
    + """
from hf_ext.models import GraphPUConfig, GraphPUModel

torch.manual_seed(0)
config = GraphPUConfig(conv="gat", num_features=4, edge_scorer=True, class_prior=0.3, score_offset=0.5)
model = GraphPUModel(config)
{push}
result = model.predict(x, edge_index).probabilities.tolist()
"""
)
PULL = (
    GRAPH
    + """
import {imports}sys
from transformers import AutoModel

class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_ext" and {without}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
model = AutoModel.from_pretrained("me/graph"{options})
found = model.predict(x, edge_index).probabilities.tolist()
result = [type(model).__module__.split(".")[0], model.config.class_prior, found]
"""
)


@pytest.mark.parametrize(
    "push",
    ['model.push_to_hub("me/graph")', 'model.save_pretrained("graph", push_to_hub=True, repo_id="me/graph")'],
    ids=["push_to_hub", "save_pretrained"],
)
def test_by_id_with_and_without_this_package(push: str, hub: Hub, in_process: Callable[..., Any]) -> None:
    pushed = in_process(PUSH.format(push=push))
    files = hub.repos["me/graph"].files()
    assert {"config.json", "model.safetensors", "modeling_graph.py", "convolutions_graph.py", "portable.py"} <= set(
        files
    )
    here = in_process(PULL.format(imports="hf_ext, ", without=False, options=""))
    there = in_process(PULL.format(imports="", without=True, options=", trust_remote_code=True"))
    assert here == ["hf_ext", 0.3, pytest.approx(pushed)]
    assert there == ["transformers_modules", 0.3, pytest.approx(pushed)]
    offline = PULL.format(imports="hf_ext, ", without=False, options="")
    assert in_process(offline, HF_HUB_OFFLINE="1") == here
