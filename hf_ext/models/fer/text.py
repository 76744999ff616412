"""Text features of class prompts, from whatever encodes texts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

ALIKE = 1 - 1e-12  # cosine of float32 features that differ by rounding alone
TextEncoder = Any  # a name, a model of transformers, a sentence transformer, or texts -> [N, D]


def class_prompts(class_names: Sequence[str], template: str) -> list[str]:
    """The template filled with every name.

    Raises:
        ValueError: a template without one `{}`.
    """
    if template.count("{}") != 1:
        raise ValueError(f"template: found {template!r}, allowed is a text with one {{}}, for the class's name")
    return [template.replace("{}", name) for name in class_names]


def text_features(prompts: Sequence[str], encoder: TextEncoder, tokenizer: Any = None) -> Tensor:
    """Raw features of texts, float32 `[N, D]` on the CPU; no gradient.

    CLIP-like models give their projected features; other models of transformers the mean of the last hidden states
    over a text's tokens; sentence transformers what their `encode` does.

    Args:
        prompts: texts.
        encoder: a name or folder (which brings its tokenizer), a model, or a callable from texts to `[N, D]`.
        tokenizer: or its name; needed with a model of transformers.

    Raises:
        ValueError: no texts, a model without a tokenizer, features that are not a finite row for each text, or one
            direction for different texts.
    """
    texts = list(prompts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"prompts: found {texts!r}, allowed are some texts, none of them empty")
    if isinstance(encoder, str):
        tokenizer = AutoTokenizer.from_pretrained(encoder) if tokenizer is None else tokenizer
        encoder = AutoModel.from_pretrained(encoder)
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    with torch.no_grad():
        features = torch.as_tensor(_encode(texts, encoder, tokenizer)).detach().float().cpu()
    if features.ndim != 2 or len(features) != len(texts) or not _are_finite_rows(features):
        raise ValueError(
            f"text: found features of shape {tuple(features.shape)} for {len(texts)} texts, allowed is a finite row "
            "other than zero for each"
        )
    _check_different(texts, features)
    return features


def _are_finite_rows(features: Tensor) -> bool:
    return bool(features.isfinite().all() and features.any(dim=1).all())


def _check_different(texts: list[str], features: Tensor) -> None:
    unit = F.normalize(features.double(), dim=1)
    alike = (unit @ unit.t()).triu(diagonal=1) > ALIKE
    for one, other in alike.nonzero().tolist():
        if texts[one] != texts[other]:
            raise ValueError(
                f"text: found one direction for {texts[one]!r} and {texts[other]!r}, allowed are features that tell "
                "them apart (a tokenizer that knows none of their words gives such)"
            )


def _encode(texts: list[str], encoder: Any, tokenizer: Any) -> Any:
    if callable(encode := getattr(encoder, "encode", None)):
        return encode(texts)
    if not isinstance(encoder, torch.nn.Module):
        return encoder(texts)
    if tokenizer is None:
        raise ValueError(
            f"text_tokenizer: found None with a {type(encoder).__name__}, allowed is its tokenizer (or a name as text)"
        )
    was_training = encoder.training
    encoder.eval()
    try:
        device = next(encoder.parameters()).device
        # SigLIP reads the last place, and was trained with texts of full length
        full = str(getattr(getattr(encoder, "config", None), "model_type", "")).startswith("siglip")
        tokens = tokenizer(texts, padding="max_length" if full else True, truncation=True, return_tensors="pt")
        tokens = tokens.to(device)
        return _pooled(encoder, tokens)
    finally:
        encoder.train(was_training)


def _pooled(encoder: torch.nn.Module, tokens: Any) -> Tensor:
    project: Callable[..., Any] | None = getattr(encoder, "get_text_features", None)
    if project is not None:
        projected = project(**tokens)
        return projected if isinstance(projected, Tensor) else projected.pooler_output
    outputs = encoder(**tokens)
    if getattr(outputs, "text_embeds", None) is not None:
        return outputs.text_embeds
    mask = tokens["attention_mask"].unsqueeze(-1).to(outputs.last_hidden_state.dtype)
    return (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)
