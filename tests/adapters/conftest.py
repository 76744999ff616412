"""Tiny models of every kind that MoLA adapts, from configurations: nothing is downloaded."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn


@dataclass
class Zoo:
    """A model, its input for three samples, and the layers to adapt."""

    make: Callable[[], nn.Module]
    inputs: dict[str, torch.Tensor]
    targets: list[str]
    head: str

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval()


def _images(channels: int = 3, size: int = 16) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(1))}


def _tokens() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=4, **sizes))


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_labels=4, **sizes))


def _swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    sizes = {"embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 2}
    return SwinForImageClassification(SwinConfig(image_size=16, patch_size=2, num_labels=4, **sizes))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=4, **sizes))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, bos_token_id=1, eos_token_id=1, pad_token_id=0, **sizes))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, bos_token_id=1, eos_token_id=1, pad_token_id=0, **sizes))


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=50, decoder_start_token_id=0, **sizes))


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=4, **options)

    return make


ZOO = {
    "vit": Zoo(_vit, _images(), ["q_proj", "v_proj", "fc1"], "classifier"),
    "resnet": Zoo(_resnet, _images(), ["convolution"], "classifier.1"),
    "swin": Zoo(_swin, _images(), ["q_proj", "v_proj", "fc1"], "classifier"),
    "bert": Zoo(_bert, _tokens(), ["query", "value", "dense"], "classifier"),
    "gpt2": Zoo(_gpt2, _tokens(), ["c_attn", "c_fc", "c_proj"], "lm_head"),
    "llama": Zoo(_llama, _tokens(), ["q_proj", "v_proj", "down_proj"], "lm_head"),
    "t5": Zoo(_t5, {**_tokens(), "decoder_input_ids": _tokens()["input_ids"][:, :3]}, ["q", "v", "wi"], "lm_head"),
    "timm resnet": Zoo(
        _timm("resnet10t"),
        {"x": _images()["pixel_values"]},
        ["layer1.0.conv1", "layer3.0.conv2", "layer3.0.downsample.1"],
        "fc",
    ),
    "timm vit": Zoo(
        _timm("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2, embed_dim=24),
        {"x": _images()["pixel_values"]},
        ["qkv", "proj", "fc1"],
        "head",
    ),
}


@pytest.fixture(params=list(ZOO))
def zoo(request: pytest.FixtureRequest) -> Zoo:
    if request.param.startswith("timm") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    return ZOO[request.param]


@pytest.fixture
def vit() -> Zoo:
    return ZOO["vit"]


@pytest.fixture
def named() -> Callable[[str], Zoo]:
    return ZOO.__getitem__
