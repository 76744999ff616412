"""MoLA on every kind of base model: forward, gradients, merging, export."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_ext.adapters import MoLAConfig
from hf_ext.adapters.mola import from_loras
from hf_ext.adapters.mola.router import ImageRouter, run

IDS = torch.tensor([2, 0, 1])


def adapt(zoo: Any, **config: Any) -> Any:
    torch.manual_seed(1)
    defaults = {"target_modules": zoo.targets, "num_experts": 3, "r": 2, "init_weights": False}
    return get_peft_model(zoo.model(), MoLAConfig(**{**defaults, **config})).eval()


def logits(model: nn.Module, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    with torch.no_grad():
        output = model(**inputs, **kwargs)
    return output if isinstance(output, Tensor) else output.logits


def test_it_starts_as_the_base_model(zoo: Any) -> None:
    expected = logits(zoo.model(), zoo.inputs)
    for routing in ("task", "router"):
        model = adapt(zoo, routing=routing, init_weights=True)
        assert torch.equal(logits(model, zoo.inputs, mola_task_ids=IDS), expected)


def test_rows_of_a_mixed_batch_are_those_of_single_tasks(zoo: Any) -> None:
    model = adapt(zoo).double()  # both may take other ways to the same, which differ by rounding
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in zoo.inputs.items()}
    mixed = logits(model, inputs, mola_task_ids=IDS)
    single = [logits(model, inputs, mola_task_ids=int(task))[row] for row, task in enumerate(IDS)]
    torch.testing.assert_close(mixed, torch.stack(single), rtol=1e-9, atol=1e-9)
    assert (mixed - logits(model, inputs, mola_task_ids=IDS.roll(1))).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_router_mixes_the_experts(zoo: Any, kind: str) -> None:
    model = adapt(zoo, routing="router", router_kind=kind)
    got = logits(model, zoo.inputs)
    weights = model.routing.weights["default"]
    assert weights.sum(-1).tolist() == pytest.approx([1.0] * 3)
    if kind == "hard":
        assert set(weights.flatten().tolist()) == {0.0, 1.0}
        same = adapt(zoo)
        same.load_state_dict(model.state_dict(), strict=False)
        expected = logits(same, zoo.inputs, mola_task_ids=weights.argmax(-1))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [{}, {"routing": "router"}, {"train_backbone": True}], ids=str)
def test_gradients_reach_all_that_is_trainable_and_nothing_else(zoo: Any, config: dict[str, Any]) -> None:
    model = adapt(zoo, **config).train()
    output = model(**zoo.inputs, mola_task_ids=IDS)
    (output if isinstance(output, Tensor) else output.logits).square().mean().backward()
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad and value.grad is not None]
    missing = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert frozen == missing == []
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    assert all("mola_" in name for name in trainable) != config.get("train_backbone", False)


def test_merged_task_is_a_plain_model_with_equal_outputs(zoo: Any) -> None:
    model = adapt(zoo, task_heads=[zoo.head] if zoo.head in ("classifier", "fc", "head") else None)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "mola_head" in name:
                value.add_(torch.randn_like(value))
    for task in range(3):
        merged = model.merge_task(task)
        assert type(merged) is type(zoo.model())
        assert merged.state_dict().keys() == zoo.model().state_dict().keys()
        assert not merged._forward_pre_hooks
        expected = logits(model, zoo.inputs, mola_task_ids=task)
        torch.testing.assert_close(logits(merged, zoo.inputs), expected, rtol=1e-4, atol=1e-5)


def test_merging_leaves_tied_embeddings_alone(named: Callable[[str], Any], tmp_path: Path) -> None:
    zoo = named("gpt2")
    model = adapt(zoo, target_modules=["lm_head"]).double()
    merged = model.merge_task(1)
    expected = logits(model, zoo.inputs, mola_task_ids=1)
    torch.testing.assert_close(logits(merged, zoo.inputs), expected, rtol=1e-10, atol=1e-12)
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(logits(again, zoo.inputs), expected, rtol=1e-10, atol=1e-12)


def test_loralib_convolutions(named: Callable[[str], Any]) -> None:
    zoo = named("resnet")
    model = adapt(zoo, conv_form="loralib")
    mixed = logits(model, zoo.inputs, mola_task_ids=IDS)
    for row, task in enumerate(IDS):
        merged = model.merge_task(int(task))
        torch.testing.assert_close(logits(merged, zoo.inputs)[row], mixed[row], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ export
PLAIN_PEFT = """
import json, sys, torch
from peft import PeftModel
options = json.load(open("options.json"))
sys.path.insert(0, options["conftest"])
import conftest
zoo = conftest.ZOO[options["name"]]
base = zoo.model()
if options["base"]:
    base = type(base).from_pretrained(options["base"])
model = PeftModel.from_pretrained(base, "lora").eval()
with torch.no_grad():
    output = model(**zoo.inputs)
torch.save(output if isinstance(output, torch.Tensor) else output.logits, "logits.pt")
assert "hf_ext" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vit", {"rank_pattern": {"fc1": 3}, "alpha_pattern": {"q_proj": 5.0}, "task_heads": ["classifier"]}),
        ("vit", {"train_backbone": True, "modules_to_save": ["classifier"]}),
        ("resnet", {}),
        ("gpt2", {"use_rslora": True}),
    ],
)
def test_exported_expert_loads_in_plain_peft(
    name: str,
    config: dict[str, Any],
    named: Callable[[str], Any],
    run_snippet: Callable[..., str],
    tmp_path: Path,
) -> None:
    zoo = named(name)
    model = adapt(zoo, **config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.export_lora(1, str(tmp_path / "lora"))
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (tmp_path / "lora").iterdir()
    }
    written = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    base = written["base_model_name_or_path"] if config.get("train_backbone") else None
    options = {"name": name, "base": base, "conftest": str(Path(__file__).parent)}
    (tmp_path / "options.json").write_text(json.dumps(options))
    run_snippet(PLAIN_PEFT, cwd=tmp_path)
    expected = logits(model, zoo.inputs, mola_task_ids=1)
    got = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_what_has_no_lora_form_is_refused(named: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="conv_form: found 'loralib'"):
        adapt(named("resnet"), conv_form="loralib").export_lora(0, str(tmp_path))
    router = adapt(named("vit"), routing="router")
    with pytest.raises(ValueError, match="routing: found 'router', allowed is 'task' to export an expert"):
        router.export_lora(0, str(tmp_path))
    with pytest.raises(ValueError, match="routing: found 'router', allowed is 'task' to merge a task"):
        router.merge_task(0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", [3, -1, 1.0, True, math.inf, math.nan, "1", np.int64(3)])
def test_unknown_tasks_are_refused(task: Any, vit: Any) -> None:
    with pytest.raises(ValueError, match="task_id: found .*, allowed are 0 to 2"):  # noqa: RUF043
        adapt(vit).merge_task(task)


def test_a_task_may_be_a_number_of_numpy(vit: Any) -> None:
    plain = adapt(vit).merge_task(np.int64(1))
    assert torch.equal(logits(plain, vit.inputs), logits(adapt(vit).merge_task(1), vit.inputs))


def test_from_loras(vit: Any, tmp_path: Path) -> None:
    expected = []
    for index in range(3):
        torch.manual_seed(index)
        config = LoraConfig(target_modules=vit.targets, r=2, lora_alpha=4, init_lora_weights=False)
        lora = get_peft_model(vit.model(), config).eval()
        lora.save_pretrained(tmp_path / str(index))
        expected.append(logits(lora, vit.inputs))
    model = from_loras(vit.model(), [tmp_path / str(index) for index in range(3)]).eval()
    for index in range(3):
        got = logits(model, vit.inputs, mola_task_ids=index)
        torch.testing.assert_close(got, expected[index], rtol=1e-5, atol=1e-6)
    other = get_peft_model(vit.model(), LoraConfig(target_modules=vit.targets, r=4))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="allowed are LoRAs of the same rank"):
        from_loras(vit.model(), [tmp_path / "0", tmp_path / "other"])
    with pytest.raises(ValueError, match="folders: found none"):
        from_loras(vit.model(), [])
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        from_loras(vit.model(), [tmp_path / "nothing"])


def test_a_router_whose_weights_alone_are_cast() -> None:
    """As FSDP2 casts them for a forward pass: statistics stay in float32, and so does all that is computed."""
    torch.manual_seed(0)
    router, images = ImageRouter(1, 3), torch.randn(4, 1, 8, 8)
    rounded = copy.deepcopy(router)
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.copy_(weight.bfloat16())
    for weight in router.parameters():
        weight.data = weight.bfloat16()
    found = run(router, images.bfloat16())
    assert torch.equal(found, rounded(images.bfloat16().float()))
    statistics = dict(rounded.named_buffers())
    assert all(torch.equal(value, statistics[name]) for name, value in router.named_buffers())
    found.sum().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.bfloat16 for weight in router.parameters())
