"""Routing of calls that do not go through the whole model, and of parts whose rows are not the samples'."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from hf_ext.adapters import MoLAConfig

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
IMAGE = 49  # the token that stands for a part of an image
IDS = torch.tensor([2, 0])


def adapted(base: nn.Module, *targets: str, **config: Any) -> Any:
    torch.manual_seed(1)
    targets = targets or ("q_proj", "v_proj", "fc1", "down_proj")
    options = {"num_experts": 3, "r": 2, "lora_alpha": 16, "init_weights": False, **config}
    return get_peft_model(base, MoLAConfig(target_modules=list(targets), **options)).eval()


def clip() -> nn.Module:
    torch.manual_seed(0)
    text = {**SIZES, **TOKENS, "max_position_embeddings": 16}
    vision = {**SIZES, "image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def llava() -> nn.Module:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**SIZES, image_size=8, patch_size=4)
    text = LlamaConfig(**SIZES, **TOKENS)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1, image_seq_length=4
    )
    return LlavaForConditionalGeneration(config)


def idefics() -> nn.Module:
    torch.manual_seed(0)
    vision = {**SIZES, "image_size": 8, "patch_size": 4}
    text = {"model_type": "llama", **SIZES, **TOKENS}
    config = Idefics3Config(vision_config=vision, text_config=text, image_token_id=IMAGE, scale_factor=2)
    return Idefics3ForConditionalGeneration(config)


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def words(rows: int, length: int = 7) -> Tensor:
    return torch.randint(3, 49, (rows, length), generator=torch.Generator().manual_seed(4))


def value(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    found = next((outputs[name] for name in ("pooler_output", "logits", "last_hidden_state") if name in outputs), None)
    return found if found is not None else outputs[0]


# ------------------------------------------------------------------------------------------------ set_task
CALLS: dict[str, Callable[[Any], Any]] = {
    "image features": lambda model: model.get_image_features(pixel_values=pixels(2)),
    "text features": lambda model: model.get_text_features(input_ids=words(2)),
    "vision tower": lambda model: model.get_base_model().vision_model(pixels(2)),
    "text tower": lambda model: model.get_base_model().text_model(input_ids=words(2)),
    "a block": lambda model: model.get_base_model().text_model.encoder.layers[1].mlp(torch.ones(2, 7, 16)),
    "a layer": lambda model: model.get_base_model().visual_projection(torch.ones(2, 16)),
}
TARGETS = ("q_proj", "v_proj", "fc1", "visual_projection", "text_projection")


@pytest.mark.parametrize("call", CALLS)
def test_set_task_holds_for_every_call(call: str) -> None:
    model, run = adapted(clip(), *TARGETS), CALLS[call]
    with pytest.raises(ValueError, match="mola_task_ids: found None, allowed is one task id"):
        run(model)
    alone = []
    for task in range(3):
        plain = model.merge_task(task)
        plain.get_base_model = lambda plain=plain: plain
        expected = value(run(plain))
        with model.set_task((task + 1) % 3):
            model(input_ids=words(3), pixel_values=pixels(3))  # another call with another task
        with model.set_task(task):
            alone.append(value(run(model)))
            torch.testing.assert_close(alone[-1], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[0], alone[2], atol=1e-3)
    with model.set_task(IDS):
        torch.testing.assert_close(value(run(model)), torch.stack([alone[2][0], alone[0][1]]), rtol=1e-4, atol=1e-5)
    for ids in ([0, 1, 2], [0], [0, 1, 2, 0]):
        with model.set_task(ids), pytest.raises(ValueError, match=r"found ids of shape \(\d,\) for 2 samples"):
            run(model)
    with model.disable_adapter():
        run(model)


def test_the_inner_model_of_a_language_model(named: Callable[[str], Any]) -> None:
    zoo = named("llama")
    for routing in ("task", "router"):
        model = adapted(zoo.model(), routing=routing)
        model.set_task(torch.tensor([2, 0, 1]))
        whole = model(**zoo.inputs, output_hidden_states=True).hidden_states[-1]
        model(input_ids=zoo.inputs["input_ids"].flip(0))
        for inner in (model.base_model.model.model, model.get_base_model().get_decoder()):
            assert torch.equal(inner(**zoo.inputs).last_hidden_state, whole)
    embedded = model.get_input_embeddings()(zoo.inputs["input_ids"])
    for call, what in (
        (lambda: model.base_model.model.model(inputs_embeds=embedded), "a call of LlamaModel alone"),
        (lambda: model.base_model.model.model.layers[0].mlp(embedded), "a call of a part of the model alone"),
    ):
        with pytest.raises(ValueError, match=what):
            call()


def test_a_part_takes_ids_of_its_own() -> None:
    model = adapted(clip())
    vision = model.get_base_model().vision_model
    with model.set_task(1):
        both = vision(pixels(2), mola_task_ids=IDS).pooler_output
        default = vision(pixels(2)).pooler_output
    for row, task in enumerate(IDS.tolist()):
        torch.testing.assert_close(both[row], vision(pixels(2), mola_task_ids=task).pooler_output[row])
    assert torch.equal(default, vision(pixels(2), mola_task_ids=1).pooler_output)


def test_heads_called_by_themselves(vit: Any) -> None:
    model = adapted(vit.model(), "q_proj", task_heads=["classifier"])
    with torch.no_grad():
        model.base_model.model.classifier.mola_head_bias["default"].copy_(torch.arange(3.0)[:, None])
    head = model.base_model.model.classifier
    with pytest.raises(ValueError, match="mola_task_ids: found None"):
        head(torch.zeros(2, 16))
    with model.set_task(IDS):
        assert head(torch.zeros(2, 16)).tolist() == [[2.0] * 4, [0.0] * 4]


def test_ids_of_another_batch_are_not_repeated(vit: Any) -> None:
    model = adapted(vit.model(), "q_proj")
    doubled = torch.cat([vit.inputs["pixel_values"]] * 2)
    with model.set_task([0, 1, 2]), pytest.raises(ValueError, match=r"found ids of shape \(3,\) for 6 samples"):
        model(pixel_values=doubled)


def test_a_checkpoint_of_ones_own_runs_again_with_the_routing_of_its_forward() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.again = nn.Linear(4, 4), False

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.linear, x, use_reentrant=False) if self.again else self.linear(x)

    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        model = adapted(Net(), "linear").train()
        model.base_model.model.again = again
        model(torch.ones(2, 4), mola_task_ids=IDS).square().sum().backward()
        gradients.append([value.grad for value in model.parameters() if value.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


# ------------------------------------------------------------------------------------------------ several images
def _mixed(make: Callable[[], nn.Module], images: list[int]) -> dict[str, Tensor]:
    """Two samples with some images each: llava takes them in one axis, idefics in two, padded."""
    per_image = 4 if make is llava else 1
    length = 2 + per_image * max(images)
    ids = words(len(images), length)
    for row, count in enumerate(images):
        ids[row, 1 : 1 + per_image * count] = IMAGE
    if make is llava:
        return {"input_ids": ids, "pixel_values": pixels(sum(images))}
    padded = pixels(len(images), max(images))
    for row, count in enumerate(images):
        padded[row, count:] = 0
    return {"input_ids": ids, "pixel_values": padded}


@pytest.mark.parametrize("make", [llava, idefics])
@pytest.mark.parametrize("routing", ["task", "router"])
def test_one_image_a_sample_goes_with_it(make: Callable[[], nn.Module], routing: str) -> None:
    model, inputs = adapted(make(), routing=routing), _mixed(make, [1, 1])
    ids = {"mola_task_ids": IDS} if routing == "task" else {}
    together = model(**inputs, **ids).logits
    for row in range(2):
        one = {name: each[row : row + 1] for name, each in (inputs | ids).items()}
        torch.testing.assert_close(model(**one).logits[0], together[row], rtol=1e-4, atol=1e-5)
    model.set_task(IDS)
    model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("make", [llava, idefics])
@pytest.mark.parametrize("routing", ["task", "router"])
def test_images_of_several_samples_are_not_mixed_up(make: Callable[[], nn.Module], routing: str) -> None:
    model, inputs = adapted(make(), routing=routing), _mixed(make, [3, 1])
    model.set_task(IDS)
    for call in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=2)):
        with pytest.raises(ValueError, match="with 4 rows for 2 samples, allowed is one row per sample"):
            call(**inputs)
    # the ways out: one id, one sample, or no adapter where the rows are others
    single = {
        "input_ids": inputs["input_ids"][:1],
        "pixel_values": inputs["pixel_values"][: 3 if make is llava else 1],
    }
    if routing == "task":
        with model.set_task(2):
            everything = model(**inputs).logits
            torch.testing.assert_close(model(**single).logits[0], everything[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(model(**single, mola_task_ids=[2]).logits, model(**single, mola_task_ids=2).logits)
    else:
        model(**single)
    text_only = adapted(make(), "down_proj", routing=routing)
    text_only.set_task(IDS)
    assert text_only(**inputs).logits.shape[0] == 2


def test_a_projector_is_a_part_too() -> None:
    model = adapted(llava(), "linear_1")
    with pytest.raises(ValueError, match="routing for 2 samples in a layer that got 4 rows"):
        model(**_mixed(llava, [3, 1]), mola_task_ids=IDS)


def test_as_many_images_in_every_sample_are_told_by_an_axis_of_their_own() -> None:
    model, inputs = adapted(idefics()), _mixed(idefics, [2, 2])
    together = model(**inputs, mola_task_ids=IDS).logits
    for row, task in enumerate(IDS.tolist()):
        one = {name: each[row : row + 1] for name, each in inputs.items()}
        torch.testing.assert_close(model(**one, mola_task_ids=task).logits[0], together[row], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="with 4 rows for 2 samples"):
        adapted(llava())(**_mixed(llava, [2, 2]), mola_task_ids=IDS)


class Words(nn.Module):
    """A router on token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.embedding(input_ids).mean(1)


def test_towers_of_different_batches() -> None:
    model = adapted(clip())
    with pytest.raises(ValueError, match="samples"):
        model(input_ids=words(4), pixel_values=pixels(2), mola_task_ids=IDS)
    with pytest.raises(ValueError, match="with 2 rows for 4 samples"):
        adapted(clip(), routing="router", router=Words())(input_ids=words(4), pixel_values=pixels(2))
    assert model(input_ids=words(4), pixel_values=pixels(2), mola_task_ids=1).logits_per_image.shape == (2, 4)


def test_tokens_of_a_batch_in_one_axis() -> None:
    class Experts(nn.Module):
        """Like a layer of experts: all tokens in a row, or some of them."""

        def __init__(self) -> None:
            super().__init__()
            self.linear, self.kept = nn.Linear(4, 4), 6

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.reshape(-1, 4)[: self.kept])

    model = adapted(Experts(), "linear")
    x = torch.randn(2, 3, 4)
    flat = model(x, mola_task_ids=IDS)
    expected = torch.cat([model(x, mola_task_ids=2)[:3], model(x, mola_task_ids=0)[3:]])
    torch.testing.assert_close(flat, expected)
    model.base_model.model.kept = 4
    with pytest.raises(ValueError, match="routing for 2 samples in a layer that got 4 rows"):
        model(x, mola_task_ids=IDS)


class Stopped(BaseException):
    """As KeyboardInterrupt, after which torch runs no hooks."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Stopped, RuntimeError])
def test_an_interrupted_call_routes_no_later_one(kind: type[BaseException], named: Callable[[str], Any]) -> None:
    zoo = named("llama")
    model = adapted(zoo.model())
    inner, x = model.get_base_model().get_decoder(), torch.ones(2, 7, 16)
    blocks = inner.layers
    with model.set_task(2):
        expected = inner(**zoo.inputs).last_hidden_state, blocks[0].mlp(x)

    def stop(*_: Any) -> None:
        raise kind

    for call in (model, model.get_base_model(), inner):
        handle = blocks[1].register_forward_hook(stop)
        with pytest.raises(kind):
            call(**zoo.inputs, mola_task_ids=1)
        handle.remove()
        with pytest.raises(ValueError, match="mola_task_ids: found None"):
            blocks[0].mlp(x)
        with model.set_task(2):
            assert torch.equal(blocks[0].mlp(x), expected[1])
            assert torch.equal(inner(**zoo.inputs).last_hidden_state, expected[0])


def test_a_part_that_was_interrupted_within_a_call_ends_there() -> None:
    """The model goes on without it, by the ids of its own call."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, pixel_values: Tensor) -> Tensor:
            self.linear(pixel_values)
            raise Stopped

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.linear = Part(), nn.Linear(4, 4)

        def forward(self, pixel_values: Tensor) -> Tensor:
            with contextlib.suppress(Stopped):
                self.part(pixel_values.flatten(0, 1))
            return self.linear(pixel_values[:, 0])

    torch.manual_seed(0)
    model, x = adapted(Net(), "linear"), torch.randn(2, 2, 4)
    both = model(pixel_values=x, mola_task_ids=IDS)
    for row, task in enumerate(IDS.tolist()):
        torch.testing.assert_close(both[row], model.merge_task(task).linear(x[row, 0]))
    assert model.routing.current() is None
