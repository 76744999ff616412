"""MoLA adapters through the Hub: by id, with every call of the ecosystem, equal to 0; hostile repos are refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from server import Hub
from transformers import BertConfig, BertForSequenceClassification

from hf_ext.adapters import MoLAConfig
from hf_ext.hub_cards import create_card

pytestmark = pytest.mark.slow
WEIGHTS = "adapter_model.safetensors"
TOKENS, IDS = [[5, 6, 7], [8, 9, 10]], [1, 0]
CASES: dict[str, dict[str, Any]] = {
    "task": {"modules_to_save": ["classifier"]},
    "router": {"routing": "router"},
    "backbone": {"train_backbone": True, "modules_to_save": ["classifier"]},
}

PUSH = """
from pathlib import Path
from hf_ext.hub_cards import push_folder
result = [push_folder(folder, f"me/{{folder.name}}", {options}).oid for folder in map(Path, {folders!r})]
"""
LOAD = """
import hf_ext, torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForSequenceClassification as Auto

tokens, ids = torch.tensor({tokens}), torch.tensor({ids})
result = {{}}
for case in {cases}:
    def load_adapter():
        model = Auto.from_pretrained("me/base")
        model.load_adapter(f"me/{{case}}")
        return model

    ways = {{
        "PeftModel": lambda: PeftModel.from_pretrained(Auto.from_pretrained("me/base"), f"me/{{case}}"),
        "AutoPeftModel": lambda: AutoPeftModelForSequenceClassification.from_pretrained(f"me/{{case}}"),
        "Auto": lambda: Auto.from_pretrained(f"me/{{case}}"),
        "load_adapter": load_adapter,
    }}
    for way, load in ways.items():
        result[f"{{case}} {{way}}"] = load().eval()(input_ids=tokens, mola_task_ids=ids).logits.tolist()
"""


@pytest.fixture
def base(hub: Hub, tmp_path: Path) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=4, **sizes)).eval()
    model.save_pretrained(tmp_path / "base")
    hub.add("me/base", {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()})
    return model


def _adapted(base: BertForSequenceClassification, **settings: Any) -> Any:
    copy = BertForSequenceClassification(base.config)
    copy.load_state_dict(base.state_dict())
    copy.name_or_path = "me/base"
    shared = {"num_experts": 2, "r": 2, "init_weights": False, "task_type": "SEQ_CLS"}
    return get_peft_model(copy, MoLAConfig(target_modules=["query", "dense"], **shared, **settings)).eval()


def _logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS), mola_task_ids=torch.tensor(IDS)).logits.tolist()


def _save(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    create_card(folder, license="mit")
    return str(folder)


def test_by_id_with_every_call(
    hub: Hub, base: BertForSequenceClassification, in_process: Callable[..., Any], tmp_path: Path
) -> None:
    models = {case: _adapted(base, **settings) for case, settings in CASES.items()}
    in_process(PUSH.format(folders=[_save(model, tmp_path / case) for case, model in models.items()], options=""))
    code = LOAD.format(tokens=TOKENS, ids=IDS, cases=list(CASES))
    found = in_process(code)
    assert len(found) == 4 * len(CASES)
    for name, logits in found.items():
        assert logits == _logits(models[name.split()[0]]), name
    assert in_process(code, HF_HUB_OFFLINE="1") == found  # from the cache


def test_a_private_branch(
    hub: Hub, base: BertForSequenceClassification, in_process: Callable[..., Any], tmp_path: Path
) -> None:
    model = _adapted(base)
    in_process(PUSH.format(folders=[_save(model, tmp_path / "x")], options='private=True, revision="dev"'))
    assert hub.repos["me/x"].private
    code = f"""
import hf_ext, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification as Auto
model = PeftModel.from_pretrained(Auto.from_pretrained("me/base"), "me/x", revision="dev").eval()
result = model(input_ids=torch.tensor({TOKENS}), mola_task_ids=torch.tensor({IDS})).logits.tolist()
"""
    assert in_process(code) == _logits(model)


def test_an_expert_is_a_lora_for_everyone(
    hub: Hub, base: BertForSequenceClassification, in_process: Callable[..., Any], tmp_path: Path
) -> None:
    model = _adapted(base, modules_to_save=["classifier"])
    model.export_lora(1, tmp_path / "lora")
    card = create_card(tmp_path / "lora")
    assert "expert 1 of a mixture" in card.render() and card.library_name == "peft"
    assert "hf_ext" not in card.code and "mola_task_ids" not in card.code
    assert 'AutoModelForSequenceClassification.from_pretrained("me/base", num_labels=' in card.code
    in_process(PUSH.format(folders=[str(tmp_path / "lora")], options=""))
    code = f"""
import sys, torch
from peft import AutoPeftModelForSequenceClassification
model = AutoPeftModelForSequenceClassification.from_pretrained("me/lora").eval()
logits = model(input_ids=torch.tensor({TOKENS})).logits.tolist()
result = dict(logits=logits, known="hf_ext" in sys.modules, type=str(model.peft_config["default"].peft_type))
"""
    found = in_process(code)
    assert not found["known"] and found["type"].endswith("LORA")
    with model.set_task(1), torch.no_grad():
        expected = model(input_ids=torch.tensor(TOKENS)).logits
    torch.testing.assert_close(torch.tensor(found["logits"]), expected)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_hostile_repos_are_refused(
    hub: Hub, base: BertForSequenceClassification, in_process: Callable[..., Any], tmp_path: Path
) -> None:
    _adapted(base).save_pretrained(tmp_path / "good")
    good = {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()}
    config = json.loads(good["adapter_config.json"])
    pickled = {"adapter_model.bin": pickle.dumps(Payload(tmp_path / "opened"))}
    without = {name: content for name, content in good.items() if name != WEIGHTS}

    def with_config(**changes: Any) -> dict[str, bytes]:
        return good | {"adapter_config.json": json.dumps(config | changes).encode()}

    hub.add("me/pickle", without | pickled)
    hub.add("me/truncated", good | {WEIGHTS: good[WEIGHTS][:-50]})
    hub.add("me/longer", good | {WEIGHTS: good[WEIGHTS] + bytes(50)})
    hub.add("me/huge", with_config(num_experts=10**9))
    hub.add("me/more", with_config(target_modules=["query", "dense", "key"], rank_pattern={"key": 10**12}))
    hub.add("me/path", with_config(base_model_name_or_path="/root/secret"))
    hub.add("me/up", with_config(base_model_name_or_path="../secret"))
    hub.add("me/router", with_config(routing="router", router="../evil.py"))
    hub.add("me/empty", without)
    code = """
import hf_ext
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForSequenceClassification as Auto

def load_adapter(name):
    Auto.from_pretrained("me/base").load_adapter(name)

ways = {
    "PeftModel": lambda name: PeftModel.from_pretrained(Auto.from_pretrained("me/base"), name),
    "AutoPeftModel": AutoPeftModelForSequenceClassification.from_pretrained,
    "load_adapter": load_adapter,
}
result = {}
for name in ("pickle", "truncated", "longer", "huge", "more", "path", "up", "router", "empty"):
    for way, load in ways.items():
        try:
            load(f"me/{name}")
            result[f"{name} {way}"] = None
        except Exception as error:
            result[f"{name} {way}"] = f"{type(error).__name__}: {error}"
"""
    found = in_process(code)
    words = {
        "pickle": "ValueError: adapter_model.bin: found a pickle in 'me/pickle', allowed are weights in",
        "truncated": f"ValueError: {WEIGHTS}: found a broken file in 'me/truncated'",
        "longer": f"ValueError: {WEIGHTS}: found a broken file in 'me/longer'",
        "huge": f"ValueError: {WEIGHTS}: found 'base_model.model.bert",
        "more": f"ValueError: {WEIGHTS}: found no 'base_model.model.bert",
        "path": "ValueError: base_model_name_or_path: found the path '/root/secret' in 'me/path'",
        "up": "ValueError: base_model_name_or_path: found the path '../secret' in 'me/up'",
        "router": "ValueError: router: found '../evil.py'",
    }
    for case, error in found.items():
        name, way = case.split()
        if name in ("path", "up") and way == "PeftModel":
            assert error is None  # the base model was given, so the path is of no use to anyone
        elif name == "empty":
            assert error, case  # in peft's or transformers' words
        else:
            assert error and error.startswith(words[name]), (case, error)
    assert not (tmp_path / "opened").exists()


def test_an_interrupted_download_is_made_up_for(
    hub: Hub, base: BertForSequenceClassification, in_process: Callable[..., Any], tmp_path: Path
) -> None:
    model = _adapted(base)
    in_process(PUSH.format(folders=[_save(model, tmp_path / "x")], options=""))
    hub.fail("drop_download", f"GET */{WEIGHTS}")
    hub.fail(503, f"GET */{WEIGHTS}")
    code = f"""
import hf_ext, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification as Auto
for attempt in range(4):
    try:
        model = PeftModel.from_pretrained(Auto.from_pretrained("me/base"), "me/x").eval()
        break
    except Exception as error:
        print(error)
result = model(input_ids=torch.tensor({TOKENS}), mola_task_ids=torch.tensor({IDS})).logits.tolist()
"""
    assert in_process(code) == _logits(model)


def test_wrong_bytes_are_not_loaded(
    hub: Hub, base: BertForSequenceClassification, in_process: Callable[..., Any], tmp_path: Path
) -> None:
    """The client keeps them, since the length is right."""
    model = _adapted(base)
    in_process(PUSH.format(folders=[_save(model, tmp_path / "x")], options=""))
    code = f"""
import hf_ext, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification as Auto
try:
    model = PeftModel.from_pretrained(Auto.from_pretrained("me/base"), "me/x").eval()
    result = model(input_ids=torch.tensor({TOKENS}), mola_task_ids=torch.tensor({IDS})).logits.tolist()
except ValueError as error:
    result = str(error)
"""
    hub.fail("wrong_bytes", f"GET */{WEIGHTS}", 2)
    refused = f"{WEIGHTS}: found other bytes in 'me/x' than its checksum says"
    assert in_process(code).startswith(refused)
    assert in_process(code, HF_HUB_OFFLINE="1").startswith(refused)
    # with a Hub that sends the right ones again, what the cache holds is replaced
    assert in_process(code) == _logits(model)
