"""Heads that are compared: learnt ones, and fixed ones of which a part is the simplex's and a part is not."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_ext.models import ETFClassifier, replace_classifier

LEARNT, COSINE, RANDOM, SIMPLEX = "learnt head", "learnt head, cosines", "random head, fixed", "simplex head, fixed"


def with_head(model: Any, head: str, *, temperature: float | None, seed: int) -> Any:
    """The model with a head of this kind; all else of it stays.

    Args:
        model: an image classifier.
        head: one of the four.
        temperature: of all but the usual learnt head.
        seed: of the head.
    """
    if head == LEARNT:
        return model
    model = replace_classifier(model, seed=seed, temperature=temperature)
    classifier = head_of(model)
    if head != SIMPLEX:  # directions drawn at random, each of length 1
        drawn = torch.randn(classifier.weight.shape, generator=torch.Generator().manual_seed(seed))
        classifier.weight.copy_(F.normalize(drawn, dim=0))
    if head == COSINE:
        weight = classifier.weight.clone()
        del classifier.weight
        classifier.weight = nn.Parameter(weight)
    return model


def head_of(model: nn.Module) -> Any:
    """The layer that gives the logits: the simplex, or the last linear one."""
    return [module for module in model.modules() if isinstance(module, ETFClassifier | nn.Linear)][-1]


@torch.no_grad()
def class_means(model: nn.Module, pixel_values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Means of the features before the head, by class, less the mean of these; float32 `[C, d]`."""
    found: list[Tensor] = []
    handle = head_of(model).register_forward_pre_hook(lambda head, inputs: found.append(inputs[0].float().cpu()))
    try:
        for rows in pixel_values.split(512):
            model(pixel_values=rows.to(next(model.parameters()).device))
    finally:
        handle.remove()
    features = torch.cat(found)
    means = torch.stack([features[labels == label].mean(0) for label in range(classes)])
    return means - means.mean(0)


def angles(vectors: Tensor) -> Tensor:
    """Angles between all pairs of vectors `[C, d]`, in degrees, the smallest first, `[C (C - 1) / 2]`."""
    units = F.normalize(vectors.double(), dim=-1)
    first, second = torch.triu_indices(len(units), len(units), offset=1)
    cosines = (units[first] * units[second]).sum(-1).clamp(-1, 1)
    return torch.rad2deg(torch.arccos(cosines)).sort().values
