"""RD models through the Hub: the whole with and without this package, the student alone for everyone."""

from collections.abc import Callable
from typing import Any

import pytest
from server import Hub

pytestmark = pytest.mark.slow

PUSH = """
import hf_ext, torch
from transformers import ResNetConfig, ResNetForImageClassification
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

torch.manual_seed(0)
names = ["ant", "bee", "cat"]
labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
students = {
    "resnet": ResNetForImageClassification(ResNetConfig(**sizes, **labels)),
    "timm": TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_resnet", **labels)),
}
images, result = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16), {}
for name, student in students.items():
    model = hf_ext.RDForImageClassification.from_student(student, torch.nn.Flatten(), teacher_width=768)
    model.train()(images, torch.tensor([0, 1])).loss.backward()
    model.push_to_hub(f"me/{name}")
    student.push_to_hub(f"me/{name}-student")
    result[name] = model.eval()(images).logits.tolist()
"""
LOAD = """
import {imports}sys, torch
from transformers import AutoModelForImageClassification

class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_ext" and {without}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
images, result = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16), {{}}
for name in {names}:
    model = AutoModelForImageClassification.from_pretrained(f"me/{{name}}"{options}).eval()
    logits = model(images).logits.tolist()
    result[name] = [type(model).__module__.split(".")[0], list(model.config.id2label.values()), logits]
"""


def _check(found: Any, pushed: Any, module: str) -> None:
    for name, (kind, labels, logits) in found.items():
        assert kind == module and labels == ["ant", "bee", "cat"]
        for got, expected in zip(logits, pushed[name.removesuffix("-student")], strict=True):
            assert got == pytest.approx(expected, abs=1e-6)


def test_by_id_with_and_without_this_package(hub: Hub, in_process: Callable[..., Any]) -> None:
    pushed = in_process(PUSH)
    files = set(hub.repos["me/resnet"].files())
    assert {"config.json", "model.safetensors", "configuration_rd.py", "modeling_rd.py"} <= files
    whole, students = ["resnet", "timm"], ["resnet-student", "timm-student"]
    _check(in_process(LOAD.format(imports="hf_ext, ", without=False, names=whole, options="")), pushed, "hf_ext")
    remote = LOAD.format(imports="", without=True, names=whole, options=", trust_remote_code=True")
    _check(in_process(remote), pushed, "transformers_modules")
    _check(in_process(remote, HF_HUB_OFFLINE="1"), pushed, "transformers_modules")  # from the cache
    alone = LOAD.format(imports="", without=True, names=students, options="")
    _check(in_process(alone), pushed, "transformers")
