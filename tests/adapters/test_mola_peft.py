"""MoLA under PEFT's own options and life cycle, gradient checkpointing, compilation, autocast, set_task, errors."""

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from peft import get_peft_model
from torch import Tensor, nn

from hf_ext.adapters import MoLAConfig
from hf_ext.adapters.mola import find_routing, set_task

IDS = torch.tensor([2, 0, 1])


def adapt(zoo: Any, **config: Any) -> Any:
    torch.manual_seed(1)
    defaults = {"target_modules": zoo.targets, "num_experts": 3, "r": 2, "init_weights": False}
    return get_peft_model(zoo.model(), MoLAConfig(**{**defaults, **config})).eval()


def logits(model: nn.Module, zoo: Any, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(**zoo.inputs, **kwargs).logits


def adapted_layers(model: nn.Module) -> set[str]:
    return {
        name.rpartition(".mola_A")[0].rpartition("model.")[2]
        for name, _ in model.named_parameters()
        if "mola_A" in name
    }


# ------------------------------------------------------------------------------------------------ PEFT's options
def test_all_linear_leaves_out_the_head_where_peft_does(named: Callable[[str], Any]) -> None:
    assert not [
        name for name in adapted_layers(adapt(named("llama"), target_modules="all-linear")) if "lm_head" in name
    ]
    assert "classifier" in adapted_layers(adapt(named("vit"), target_modules="all-linear"))
    heads = adapt(named("vit"), target_modules="all-linear", task_heads=["classifier"])
    assert "classifier" not in adapted_layers(heads)


def test_exclude_and_layers_to_transform(vit: Any) -> None:
    model = adapt(vit, exclude_modules=["fc1"])
    assert all(not name.endswith("fc1") for name in adapted_layers(model))
    model = adapt(vit, layers_to_transform=[1], layers_pattern="layers")
    assert all(".1." in name for name in adapted_layers(model))


def test_rank_and_alpha_patterns_and_rslora(vit: Any) -> None:
    model = adapt(vit, rank_pattern={"fc1": 4}, alpha_pattern={"q_proj": 8}, lora_alpha=16)
    layers = {
        name.rpartition(".")[2]: layer for name, layer in model.named_modules() if hasattr(layer, "mola_scaling")
    }
    assert layers["fc1"].mola_A["default"].shape[1] == 4
    assert (layers["fc1"].mola_scaling["default"], layers["q_proj"].mola_scaling["default"]) == (4.0, 4.0)
    rslora = adapt(vit, use_rslora=True, r=4, lora_alpha=8)
    assert {layer.mola_scaling["default"] for layer in rslora.modules() if hasattr(layer, "mola_scaling")} == {4.0}


@pytest.mark.parametrize("bias", ["all", "mola_only"])
def test_bias(vit: Any, bias: str) -> None:
    trainable = {name for name, value in adapt(vit, bias=bias).named_parameters() if value.requires_grad}
    biases = {name for name in trainable if name.endswith("bias")}
    assert biases
    assert all(".base_layer." in name for name in biases) == (bias == "mola_only")


def test_grouped_convolutions(vit: Any) -> None:
    def grouped() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4))

    with pytest.raises(ValueError, match="target_modules: found '1', a convolution with groups=4"):
        get_peft_model(grouped(), MoLAConfig(target_modules=["0", "1"], num_experts=2))
    model = get_peft_model(grouped(), MoLAConfig(target_modules=r"\d", num_experts=2))
    assert [name for name, _ in model.named_parameters() if "mola_A" in name] == ["base_model.model.0.mola_A.default"]
    assert model(torch.randn(2, 4, 8, 8), mola_task_ids=torch.tensor([0, 1])).shape == (2, 4, 4, 4)


def test_layers_that_cannot_be_adapted_are_refused(
    named: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="a LayerNorm; allowed are Linear"):
        adapt(named("vit"), target_modules=["layernorm"])
    with pytest.raises(ValueError, match="not found in the base model"):
        adapt(named("vit"), target_modules=["nothing"])
    monkeypatch.setattr("hf_ext.adapters.mola.model.resolve_quantization_backend", lambda layer: "some backend")
    with pytest.raises(ValueError, match="a quantised Linear; allowed are layers of floating"):
        adapt(named("vit"))


@pytest.mark.parametrize(
    ("heads", "message"),
    [(["nothing"], "task_heads: found 'nothing'"), (["layernorm"], "a LayerNorm; allowed are linear layers")],
)
def test_wrong_heads_are_refused(vit: Any, heads: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapt(vit, task_heads=heads)


# ------------------------------------------------------------------------------------------------ life cycle
def test_several_adapters(vit: Any) -> None:
    model = adapt(vit)
    first = logits(model, vit, mola_task_ids=IDS)
    second_config = MoLAConfig(target_modules=["fc2"], num_experts=2, r=2, routing="router", init_weights=False)
    model.add_adapter("second", second_config)
    assert not any(value.requires_grad for name, value in model.named_parameters() if "second" in name)
    assert torch.equal(logits(model, vit, mola_task_ids=IDS), first)
    model.set_adapter("second")
    second = logits(model, vit)
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trainable and all("second" in name for name in trainable)
    assert any("adapter_routing" in name for name in trainable)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model, vit, mola_task_ids=IDS)
    base = logits(vit.model(), vit)
    assert min((both - other).abs().max() for other in (first, second, base)) > 1e-4
    model.set_adapter("default")
    model.delete_adapter("second")
    assert not [name for name in model.state_dict() if "second" in name]
    assert torch.equal(logits(model, vit, mola_task_ids=IDS), first)


def test_only_one_adapter_may_train_the_backbone(vit: Any) -> None:
    model = adapt(vit, train_backbone=True)
    with pytest.raises(ValueError, match="train_backbone: found True among the adapters"):
        model.add_adapter("second", MoLAConfig(target_modules=["fc2"], num_experts=2))


def test_disable_and_unload(vit: Any) -> None:
    expected = logits(vit.model(), vit)
    for config in ({}, {"routing": "router"}, {"task_heads": ["classifier"]}):
        model = adapt(vit, **config)
        with model.disable_adapter():
            assert torch.equal(logits(model, vit, mola_task_ids=IDS), expected)  # the keyword never reaches the base
            assert torch.equal(logits(model, vit), expected)
        assert not torch.equal(logits(model, vit, mola_task_ids=IDS), expected)
        plain = model.unload()
        assert plain.state_dict().keys() == vit.model().state_dict().keys()
        assert not plain._forward_pre_hooks and not hasattr(plain, "adapter_routing")
        assert torch.equal(logits(plain, vit), expected)


def test_merging_is_refused(vit: Any) -> None:
    for routing in ("task", "router"):
        model = adapt(vit, routing=routing)
        for merge in (model.merge_and_unload, model.merge_adapter):
            with pytest.raises(ValueError, match=r"merge: found a mixture .* allowed is merge_task"):
                merge()


def test_status_copies_and_pickles(vit: Any) -> None:
    for routing in ("task", "router"):
        model = adapt(vit, routing=routing, modules_to_save=["classifier"])
        status = model.get_model_status()
        assert status.enabled is True
        assert status.active_adapters == status.available_adapters == ["default"]
        model.train()(**vit.inputs, mola_task_ids=IDS)  # leaves tensors of a graph in the routing state
        model.eval()
        expected = logits(model, vit, mola_task_ids=IDS)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(logits(twin, vit, mola_task_ids=IDS), expected)
            assert twin.routing is not model.routing


# ------------------------------------------------------------------------------------------------ checkpointing
def _gradients(zoo: Any, checkpointing: dict[str, Any] | None, two: bool, **config: Any) -> dict[str, Tensor]:
    model = adapt(zoo, **config).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if checkpointing is not None:
        model.activation_checkpointing_enable(checkpointing)
        model.enable_input_require_grads()
    loss = model(**zoo.inputs, mola_task_ids=IDS).logits.square().mean()
    if two:
        other = {name: value.flip(0) for name, value in zoo.inputs.items()}
        loss = loss + model(**other, mola_task_ids=IDS.roll(1)).logits.mean()
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("two", [False, True], ids=["one forward", "two forwards"])
@pytest.mark.parametrize(("routing", "reentrant"), [("task", False), ("router", False), ("task", True)])
@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_gradient_checkpointing(
    name: str, routing: str, reentrant: bool, two: bool, named: Callable[[str], Any]
) -> None:
    """Also with two forwards before one backward, whose recomputation must see its own routing."""
    zoo = named(name)
    plain = _gradients(zoo, None, two, routing=routing)
    checkpointed = _gradients(zoo, {"use_reentrant": reentrant}, two, routing=routing)
    assert plain.keys() == checkpointed.keys()
    for key, value in plain.items():
        torch.testing.assert_close(checkpointed[key], value, rtol=1e-5, atol=1e-7)


def test_reentrant_checkpointing_of_a_router_is_refused(vit: Any) -> None:
    with pytest.raises(ValueError, match="use_reentrant: found True, allowed is False with routing='router'"):
        _gradients(vit, {"use_reentrant": True}, False, routing="router")


# ------------------------------------------------------------------------------------------------ compile, autocast
@pytest.mark.slow
@pytest.mark.parametrize("routing", ["task", "router"])
def test_compiled_once_for_all_ids(vit: Any, routing: str) -> None:
    model = adapt(vit, routing=routing)
    expected = [logits(model, vit, mola_task_ids=IDS.roll(shift)) for shift in range(3)]
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for shift, value in enumerate(expected):
        got = logits(compiled, vit, mola_task_ids=IDS.roll(shift))
        torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("shape", "batches", "product"),
    [
        pytest.param((4, 20, 6), [[2, 0, 1, 0], [0, 1, 0, 2], [1, 1, 1, 1]], "baddbmm", id="copies of experts"),
        pytest.param((4, 6), [[2, 0, 1, 0], [0, 1, 0, 2], [1, 1, 1, 1]], "addmm", id="side by side"),
        pytest.param((4, 20, 6), [2, 0, 1], "baddbmm", id="one task"),
    ],
)
def test_compiled_each_way_of_a_layer_by_task_is_one_graph(
    shape: tuple[int, ...], batches: list[Any], product: str
) -> None:
    torch.manual_seed(1)
    adapter = MoLAConfig(target_modules=["0"], num_experts=3, r=2, init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5)), adapter)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.EagerAndRecordGraphs()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for ids in map(torch.tensor, batches):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x, mola_task_ids=ids), model(x, mola_task_ids=ids))
    assert len(counter.graphs) == 1
    assert f"torch.{product}(" in counter.graphs[0].code


@pytest.mark.parametrize("routing", ["task", "router"])
def test_autocast(vit: Any, routing: str) -> None:
    model = adapt(vit, routing=routing)
    expected = logits(model, vit, mola_task_ids=IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = logits(model, vit, mola_task_ids=IDS)
    assert model.routing.weights["default"].dtype == torch.float32
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.005)  # the adapter moves logits by 0.2


# ------------------------------------------------------------------------------------------------ task ids
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (None, r"mola_task_ids: found None, allowed is one task id in \[0, 3\)"),
        ([0, 1], r"found ids of shape \(2,\) for 3 samples"),
        ([[0, 1, 2]], r"found ids of shape \(1, 3\) for 3 samples"),
        ([0, 1, 3], r"found \[0, 1, 3\], allowed are 0 to 2"),
        (-1, r"found \[-1\], allowed are 0 to 2"),
        ([0.0, 1.0, 2.0], "task_ids: found torch.float32, allowed are integers"),
        ([math.nan, 1.0, 2.0], "task_ids: found torch.float32, allowed are integers"),
        ([True, False, True], "task_ids: found torch.bool, allowed are integers"),
        (True, "task_ids: found torch.bool, allowed are integers"),
        ("1", "task_ids: found '1', allowed are integers"),
    ],
)
def test_wrong_ids_are_refused(vit: Any, ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logits(adapt(vit), vit, mola_task_ids=torch.tensor(ids) if isinstance(ids, list) else ids)


def test_ids_pick_heads_too(vit: Any) -> None:
    model = adapt(vit, routing="router", task_heads=["classifier"], num_tasks=5)
    with pytest.raises(ValueError, match=r"allowed is one task id in \[0, 5\)"):
        logits(model, vit)
    with torch.no_grad():
        model.base_model.model.classifier.mola_head_bias["default"].copy_(torch.arange(5.0)[:, None] * 100)
    shifted = logits(model, vit, mola_task_ids=torch.tensor([4, 0, 2]))
    assert (shifted.mean(1) / 100).round().tolist() == [4, 0, 2]


def test_set_task(vit: Any) -> None:
    model = adapt(vit)
    expected = [logits(model, vit, mola_task_ids=task) for task in range(3)]
    with model.set_task(1):
        assert torch.equal(logits(model, vit), expected[1])
        with model.set_task(IDS):
            assert torch.equal(logits(model, vit), logits(model, vit, mola_task_ids=IDS))
        assert torch.equal(logits(model, vit), expected[1])
        assert torch.equal(logits(model, vit, mola_task_ids=2), expected[2])  # a call's own ids win
    with pytest.raises(ValueError, match="found None"):
        logits(model, vit)
    set_task(model, 0)  # holds without a with statement
    assert torch.equal(logits(model, vit), expected[0])
    with pytest.raises(ValueError, match=r"found \[7\], allowed are 0 to 2"):
        model.set_task(7)
    with model.set_task(np.int64(2)):
        assert torch.equal(logits(model, vit), expected[2])
    for wrong in (math.inf, 0.5, True, "1"):
        with pytest.raises(ValueError, match=r"mola_task_ids: found .*, allowed are integers"):
            model.set_task(wrong)
    with pytest.raises(ValueError, match="without MoLA adapter"):
        set_task(vit.model(), 0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_generate_with_beams(name: str, named: Callable[[str], Any]) -> None:
    zoo = named(name)
    model = adapt(zoo, task_type="SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM")
    prompt = zoo.inputs["input_ids"]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 3, "do_sample": False}
    with model.set_task(IDS):
        together = model.generate(input_ids=prompt, **options)
    for row, task in enumerate(IDS):
        with model.set_task(int(task)):
            alone = model.generate(input_ids=prompt[row : row + 1], **options)
        assert torch.equal(alone[0], together[row])


def test_a_router_keeps_the_prompts_routing_while_decoding(named: Callable[[str], Any]) -> None:
    zoo = named("llama")
    model = adapt(zoo, routing="router", task_type="CAUSAL_LM")
    prompt = zoo.inputs["input_ids"]
    generated = model.generate(input_ids=prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    decoded = model.routing.weights["default"]
    model(input_ids=prompt)
    assert torch.equal(decoded, model.routing.weights["default"])
    assert generated.shape == (3, 11)


def test_the_encoder_is_routed_when_generate_calls_it_alone(named: Callable[[str], Any]) -> None:
    zoo = named("t5")
    prompt = {name: zoo.inputs[name] for name in ("input_ids", "attention_mask")}
    for routing in ("task", "router"):
        model = adapt(zoo, routing=routing, task_type="SEQ_2_SEQ_LM")
        set_task(model, IDS)
        generated = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        whole = logits(model, zoo_with(zoo, decoder_input_ids=generated[:, :-1]))
        assert torch.equal(whole.argmax(-1)[:, -1], generated[:, -1])
        model.get_encoder()(**prompt)  # nor does a stray call disturb the next forward
        assert torch.equal(logits(model, zoo_with(zoo, decoder_input_ids=generated[:, :-1])), whole)


def zoo_with(zoo: Any, **inputs: Tensor) -> Any:
    return dataclasses.replace(zoo, inputs={**zoo.inputs, **inputs})


def test_text_router_ignores_padding(named: Callable[[str], Any]) -> None:
    zoo = named("bert")
    model = adapt(zoo, routing="router")
    expected = logits(model, zoo)
    weights = model.routing.weights["default"]
    changed = {**zoo.inputs, "input_ids": zoo.inputs["input_ids"].clone()}
    changed["input_ids"][1, 5:] = 7  # behind the mask
    model(**changed)
    assert torch.equal(model.routing.weights["default"], weights)
    positional = model.base_model.model(zoo.inputs["input_ids"], zoo.inputs["attention_mask"]).logits
    torch.testing.assert_close(positional, expected)


def test_pipeline(named: Callable[[str], Any]) -> None:
    from PIL import Image
    from transformers import ViTImageProcessor, pipeline

    zoo = named("vit")
    model = adapt(zoo)
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    classify = pipeline("image-classification", model=model.get_base_model(), image_processor=processor)
    image = Image.new("RGB", (16, 16), "red")
    scores = []
    for task in (0, 1):
        with model.set_task(task):
            scores.append(classify(image)[0]["score"])
    assert scores[0] != scores[1]


def test_inputs_that_mix_samples_are_refused() -> None:
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.reshape(1, -1, 4))

    model = get_peft_model(Packs(), MoLAConfig(target_modules=["linear"], num_experts=2))
    with pytest.raises(ValueError, match="routing for 3 samples in a layer that got 1 rows"):
        model(torch.randn(3, 2, 4), mola_task_ids=torch.tensor([0, 1, 0]))


def test_hook_is_found_through_wrappers(vit: Any) -> None:
    assert find_routing(nn.Sequential(adapt(vit))) is not None
    assert find_routing(vit.model()) is None
