"""Tiny backbones and text encoders for tests of models."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTModel,
)

WIDTH = 12


def embed(texts: Sequence[str]) -> Tensor:
    """Features of texts that depend on all their characters."""
    rows = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(hash_of(text))) for text in texts]
    return torch.stack(rows)


def hash_of(text: str) -> int:
    return sum((place + 1) * ord(letter) for place, letter in enumerate(text))


def _sizes(**extra: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        **extra,
    }


def clip() -> CLIPModel:
    torch.manual_seed(2)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 40, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=_sizes(), projection_dim=10)).eval()


def siglip() -> SiglipModel:
    torch.manual_seed(2)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 40, "max_position_embeddings": 16, "projection_size": 16}
    return SiglipModel(SiglipConfig(text_config=text, vision_config=_sizes())).eval()


def bert() -> BertModel:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=40, **sizes)).eval()


def tokenizer(*, ends: bool = False) -> PreTrainedTokenizerFast:
    """Of a few words; `ends`: with [EOS] after a text, where CLIP's features are."""
    words = [
        "[PAD]",
        "[EOS]",
        "[BOS]",
        "[UNK]",
        *["a", "photo", "of", "person", "making", "facial", "expression.", "happy", "sad", "neutral"],
    ]
    model = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = WhitespaceSplit()
    if ends:
        model.post_processor = TemplateProcessing("$A [EOS]", special_tokens=[("[EOS]", words.index("[EOS]"))])
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]")


def _resnet() -> PreTrainedModel:
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"))


def _convnext() -> PreTrainedModel:
    return ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))


def _timm() -> PreTrainedModel:
    known = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.4] * 3}
    return TimmWrapperModel(TimmWrapperConfig(architecture="test_resnet", num_labels=3, pretrained_cfg=known))


BACKBONES: dict[str, Callable[[], PreTrainedModel]] = {
    "resnet": _resnet,
    "vit": lambda: ViTModel(ViTConfig(**_sizes())),
    "convnext": _convnext,
    "timm": _timm,
}


def backbone(kind: str = "resnet") -> PreTrainedModel:
    """A tiny vision backbone by its kind, the same at every call."""
    torch.manual_seed(1)
    return BACKBONES[kind]().eval()
