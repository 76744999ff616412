"""A router's routing under generation: made from the prompt and kept with its sequence, by whatever path."""

import copy
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_ext.adapters import MoLAConfig
from hf_ext.adapters.mola import find_routing, set_task

NEW = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
PROMPTS = range(6)


def llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    tokens = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **tokens, max_position_embeddings=64)).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 1.0 - 2.0 * (torch.arange(16) % 2)  # padding that would be seen
    return model


def adapted(base: Any, **config: Any) -> Any:
    """A model whose text depends on the mixture, and a router that mixes every prompt in another way."""
    torch.manual_seed(1)
    targets = ["q_proj", "v_proj", "down_proj", "q", "v", "wi"]
    options: dict[str, Any] = {"routing": "router", "router_kind": "hard", "init_weights": False, **config}
    model = get_peft_model(base, MoLAConfig(target_modules=targets, num_experts=4, r=4, lora_alpha=24, **options))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "mola_router.default.h" in name:
                value.add_(torch.randn_like(value))
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return adapted(llama())


@pytest.fixture(scope="module")
def t5() -> Any:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    return adapted(T5ForConditionalGeneration(T5Config(vocab_size=50, decoder_start_token_id=0, **sizes)))


def prompt(seed: int, length: int = 9, rows: int = 1) -> Tensor:
    return torch.randint(3, 10 + 4 * seed, (rows, length), generator=torch.Generator().manual_seed(seed))


def generated(model: Any, ids: Tensor, **options: Any) -> list[list[int]]:
    found = model.generate(input_ids=ids, attention_mask=ids.ne(0).long(), **{**NEW, **options})
    return [row[-NEW["max_new_tokens"] :] for row in found.tolist()]


def experts(model: Any, ids: Tensor) -> list[int]:
    model(input_ids=ids)
    return model.routing.weights["default"].argmax(-1).tolist()


def rerouted(model: Any, ids: Tensor) -> list[int]:
    """What comes out when every step routes anew, from the prompt and all that follows."""
    for _ in range(NEW["max_new_tokens"]):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, -NEW["max_new_tokens"] :].tolist()


def test_the_texts_tell_routings_apart(model: Any) -> None:
    """Or none of the comparisons below could fail."""
    assert len({experts(model, prompt(seed))[0] for seed in PROMPTS}) > 1
    assert any(rerouted(model, prompt(seed)) != generated(model, prompt(seed))[0] for seed in PROMPTS)
    assert any(experts(model, prompt(seed)[:, :4]) != experts(model, prompt(seed)) for seed in PROMPTS)


# ------------------------------------------------------------------------------------------------ options of generate
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "assistant_model": lambda: {"assistant_model": llama(1)},
    "prompt_lookup_num_tokens": lambda: {"prompt_lookup_num_tokens": 3},
    "prefill_chunk_size": lambda: {"prefill_chunk_size": 4},
    "use_cache": lambda: {"use_cache": False},
    "static": lambda: {"cache_implementation": "static"},
    "static in chunks": lambda: {"cache_implementation": "static", "prefill_chunk_size": 4},
    "output_scores": lambda: {"output_scores": True},
    "a loop of one's own": lambda: {"custom_generate": type(llama())._sample},
    "a cache of one's own": lambda: {"cache": DynamicCache()},
    "a static cache of one's own": lambda: {"cache": StaticCache(llama().config, max_cache_len=32)},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_gives_the_plain_text(option: str, model: Any) -> None:
    for seed in PROMPTS:
        ids = torch.cat([prompt(seed, 5), prompt(seed, 5)], dim=1)  # so that there is something to look up
        assert generated(model, ids, **OPTIONS[option]()) == generated(model, ids), seed


def test_the_assistant_may_be_the_model_itself(model: Any) -> None:
    for seed in PROMPTS:
        text = generated(model, prompt(seed), assistant_model=model)
        assert text == generated(model, prompt(seed))


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_padding_on_the_left_changes_nothing(options: dict[str, Any], model: Any) -> None:
    ids = [prompt(seed, length) for seed, length in ((1, 9), (3, 6), (5, 4))]
    padded = torch.cat([torch.nn.functional.pad(one, (9 - one.shape[1], 0)) for one in ids])
    together = generated(model, padded, **options)
    assert together == [generated(model, one)[0] for one in ids]
    # and without a mask, which generate makes from the padding token
    assert model.generate(padded, **NEW, **options)[:, 9:].tolist() == together


def test_beams_and_several_sequences(model: Any) -> None:
    batch = torch.cat([prompt(seed) for seed in PROMPTS])
    beams = {"num_beams": 3, "num_return_sequences": 2}
    together = generated(model, batch, **beams)
    apart = [row for seed in PROMPTS for row in generated(model, prompt(seed), **beams)]
    assert together == apart
    assert generated(model, batch, **beams, use_cache=False) == together
    kept = model.generate(batch, **{**NEW, **beams}, return_dict_in_generate=True).cache
    assert kept._mola_routing.weights["default"].shape == (18, 4)


def test_guidance_leaves_the_routing_alone(model: Any) -> None:
    for seed in PROMPTS:
        negative = {"guidance_scale": 1.0 + 1e-6, "negative_prompt_ids": prompt(9 - seed)}
        assert generated(model, prompt(seed), **negative) == generated(model, prompt(seed))


@pytest.mark.slow
def test_compiled_steps(model: Any) -> None:
    from transformers.generation import CompileConfig

    config = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    config._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": config}
    for seed in list(PROMPTS)[:3]:
        assert generated(model, prompt(seed), **options) == generated(model, prompt(seed))


@pytest.mark.slow
def test_compiled_steps_by_hand(model: Any) -> None:
    torch._dynamo.reset()
    base = model.get_base_model()
    compiled = torch.compile(base, backend="aot_eager", fullgraph=True)
    for seed in list(PROMPTS)[:3]:
        caches = [StaticCache(base.config, max_cache_len=16) for _ in range(2)]
        for cache in caches:
            base(input_ids=prompt(seed), cache=cache)
        base(input_ids=prompt(9 - seed))
        with torch.no_grad():
            got, expected = (
                call(input_ids=prompt(seed)[:, :1], cache=cache).logits
                for call, cache in zip((compiled, base), caches, strict=True)
            )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_continuous_batching_by_task() -> None:
    model = adapted(llama(), routing="task").get_base_model()
    prompts = [[3, 4, 5, 6], [6, 7, 9]]
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=2, pad_token_id=0)
    set_task(model, 1)
    found = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    for index, ids in enumerate(prompts):
        alone = model.generate(torch.tensor([ids]), generation_config=config)[0, len(ids) :]
        assert found[f"req_{index}"].generated_tokens == alone.tolist()
    set_task(model, [0, 1])
    with pytest.raises(ValueError, match=r"found ids of shape \(2,\) for 1 samples"):
        model.generate_batch(inputs=prompts, generation_config=config)


def test_copies_generate_by_themselves_and_the_base_model_gets_its_own_back() -> None:
    model = adapted(llama())
    twin = copy.deepcopy(model)
    for other in (twin, pickle.loads(pickle.dumps(model))):
        assert vars(other.get_base_model())["generate"].model is other.get_base_model()
        assert all(generated(other, prompt(seed)) == generated(model, prompt(seed)) for seed in PROMPTS)
    base = twin.base_model.unload()
    assert vars(base).keys() == vars(llama()).keys()
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in base.modules())
    assert generated(base, prompt(1)) == generated(llama(), prompt(1))


# ------------------------------------------------------------------------------------------------ caches
def continued(model: Any, ids: Tensor, cache: Any, between: Callable[[], Any]) -> list[int]:
    first = model.generate(input_ids=ids, cache=cache, **{**NEW, "max_new_tokens": 2, "min_new_tokens": 2})
    between()
    return model.generate(input_ids=first, cache=cache, **{**NEW, "max_new_tokens": 4, "min_new_tokens": 4})[
        0
    ].tolist()


@pytest.mark.parametrize("rows", [1, 2])
def test_conversations_in_turn(rows: int, model: Any) -> None:
    for seed in PROMPTS:
        between = partial(generated, model, prompt(9 - seed, rows=rows))
        whole = prompt(seed)[0].tolist() + generated(model, prompt(seed))[0]
        for cache in (DynamicCache(), StaticCache(model.config, max_cache_len=32)):
            assert continued(model, prompt(seed), cache, between) == whole


def step_by_step(call: Callable[..., Any], model: Any, ids: Tensor, other: Tensor, cache: Any) -> list[int]:
    """Token by token, another conversation between any two."""
    found = []
    for _ in range(NEW["max_new_tokens"]):
        outputs = call(input_ids=ids, use_cache=True, **({} if cache is None else {"cache": cache}))
        cache = outputs.cache
        ids = logits(model, outputs)[:, -1:].argmax(-1)
        found.append(int(ids))
        call(input_ids=other)
    return found


def logits(model: Any, outputs: Any) -> Tensor:
    return outputs.logits if "logits" in outputs else model.get_output_embeddings()(outputs.last_hidden_state)


@pytest.mark.parametrize("inner", [False, True], ids=["whole", "inner"])
@pytest.mark.parametrize("kind", ["the model's", "dynamic", "static"])
def test_loops_by_hand(kind: str, inner: bool, model: Any) -> None:
    call = model.base_model.model.model if inner else model
    for seed in PROMPTS:
        cache = {
            "the model's": None,
            "dynamic": DynamicCache(),
            "static": StaticCache(model.config, max_cache_len=32),
        }[kind]
        with torch.no_grad():
            text = step_by_step(call, model, prompt(seed), prompt(9 - seed), cache)
        assert text == generated(model, prompt(seed))[0]


def filled(model: Any, seeds: Any = PROMPTS) -> tuple[Any, Tensor]:
    """A cache of several prompts, and the next token of each."""
    with torch.no_grad():
        outputs = model(input_ids=torch.cat([prompt(seed) for seed in seeds]), use_cache=True)
    return outputs.cache, outputs.logits[:, -1:].argmax(-1)


def test_rows_of_a_cache_take_their_routing_along(model: Any) -> None:
    cache, token = filled(model)
    expected = model(input_ids=token, cache=copy.deepcopy(cache)).logits
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    for method, argument, index in (
        ("reorder_cache", order, order),
        ("batch_select_indices", order[:3], order[:3]),
        ("batch_repeat_interleave", 2, torch.arange(6).repeat_interleave(2)),
    ):
        changed = copy.deepcopy(cache)
        getattr(changed, method)(argument)
        got = model(input_ids=token[index], cache=changed).logits
        torch.testing.assert_close(got, expected[index], rtol=1e-4, atol=1e-5)
    assert torch.equal(model(input_ids=token, cache=cache).logits, expected)


@pytest.mark.parametrize("make", [DynamicCache, lambda: StaticCache(llama().config, max_cache_len=32)])
@pytest.mark.parametrize("empty", [lambda cache: cache.reset(), lambda cache: cache.crop(-9)])
def test_an_emptied_cache_is_for_a_new_prompt(make: Any, empty: Callable[[Any], None], model: Any) -> None:
    for seed in PROMPTS:
        cache = make()
        model(input_ids=prompt(seed), cache=cache)
        empty(cache)
        model(input_ids=prompt(9 - seed), cache=cache)
        assert experts(model, prompt(9 - seed)) == cache._mola_routing.weights["default"].argmax(-1).tolist()


def test_memory_of_a_cache_is_freed_at_once(model: Any) -> None:
    import gc
    import weakref

    cache, _ = filled(model)
    gone = weakref.ref(cache.layers[0])
    gc.disable()
    try:
        del cache
        assert gone() is None
    finally:
        gc.enable()


def test_what_cannot_be_routed_is_refused(model: Any) -> None:
    cache = DynamicCache()
    with model.disable_adapter():
        model(input_ids=prompt(0), cache=cache)
    for call in (
        lambda: model(input_ids=prompt(0)[:, :1], cache=cache),
        lambda: model.generate(input_ids=torch.cat([prompt(0), prompt(0)[:, :1]], 1), cache=cache, **NEW),
    ):
        with pytest.raises(ValueError, match="cache: found a DynamicCache of sequences that adapter 'default'"):
            call()
    cache, token = filled(model, range(2))
    with pytest.raises(ValueError, match="cache: found one of 2 sequences in a call with 1 rows"):
        model(input_ids=token[:1], cache=cache)
    with pytest.raises(ValueError, match="cu_seq_lens_q: found sequences in one row"):
        model(input_ids=prompt(0), cu_seq_lens_q=torch.tensor([0, 4, 9]))
    with pytest.raises(ValueError, match="routing: found 'router' with continuous batching"):
        model.get_base_model().generate_batch(inputs=[[3, 4, 5], [6, 7]])
    with pytest.raises(
        ValueError, match=r"attention_mask: found \(1, 1, 9, 9\), allowed with a router that reads text"
    ):
        model(input_ids=prompt(0), attention_mask=torch.ones(1, 1, 9, 9, dtype=torch.bool))


def test_a_refused_or_interrupted_generate_leaves_nothing_behind(model: Any) -> None:
    class Stop(BaseException):
        pass

    def stop(*_: Any) -> Any:
        raise Stop

    routing = find_routing(model).routing
    with pytest.raises(Stop):
        generated(model, prompt(0), logits_processor=[stop])
    assert routing.now.frame is None
    with pytest.raises(ValueError, match="no_such_option"):
        generated(model, prompt(0), no_such_option=1)
    assert routing.now.frame is None
    assert experts(model, prompt(3)) == experts(adapted(llama()), prompt(3))


def test_threads_do_not_share_a_call(model: Any) -> None:
    """A conversation in one thread, while others go on in another."""
    expected = [generated(model, prompt(seed)) for seed in PROMPTS]
    inside, go_on, found = threading.Event(), threading.Event(), []

    def wait(ids: Tensor, scores: Tensor) -> Tensor:
        inside.set()
        assert go_on.wait(60)
        return scores

    thread = threading.Thread(target=lambda: found.append(generated(model, prompt(0), logits_processor=[wait])))
    thread.start()
    assert inside.wait(60)
    others = [generated(model, prompt(seed)) for seed in PROMPTS]
    go_on.set()
    thread.join()
    assert others == expected
    assert found == expected[:1]


# ------------------------------------------------------------------------------------------------ encoder and decoder
def test_encoder_outputs_keep_their_routing(t5: Any) -> None:
    encoder = t5.get_base_model().get_encoder()
    outputs, picked = [], set()
    for seed in PROMPTS:
        outputs.append(encoder(input_ids=prompt(seed)))
        picked.add(t5.routing.weights["default"].argmax().item())
    assert len(picked) > 1
    for seed, made in zip(PROMPTS, outputs, strict=True):
        plain = t5.generate(input_ids=prompt(seed), **NEW)
        decoder_ids = plain[:, :-1]
        expected = t5(input_ids=prompt(seed), decoder_input_ids=decoder_ids).logits
        assert torch.equal(t5(encoder_outputs=made, decoder_input_ids=decoder_ids).logits, expected)
        for options in ({}, {"num_beams": 2}, {"use_cache": False}):
            again = t5.generate(encoder_outputs=copy.copy(made), **NEW, **options)
            assert torch.equal(again, t5.generate(input_ids=prompt(seed), **NEW, **options))
    made.last_hidden_state = made.last_hidden_state.clone()
    with pytest.raises(ValueError, match="encoder_outputs: found outputs whose routing is not known"):
        t5(encoder_outputs=made, decoder_input_ids=decoder_ids)
    with pytest.raises(ValueError, match="encoder_outputs: found outputs whose routing is not known"):
        t5.get_base_model().get_decoder()(input_ids=decoder_ids)
