"""The networks that federations train."""

import torch
from transformers import PreTrainedModel, ResNetForImageClassification

from hf_ext import _small_models
from hf_ext.studies.fedlesam.data import Problem
from hf_ext.studies.training import with_group_norm


def small_model(problem: Problem, seed: int) -> PreTrainedModel:
    """A ResNet of two blocks for the digits of 8 x 8 pixels, of three for larger pictures; 64 features.

    With GroupNorm: the statistics of BatchNorms are those of single clients, and their mean is nobody's.
    """
    torch.manual_seed(seed)
    channels, size = problem.parts["train"].pixel_values.shape[1:3]
    widths = (32, 64) if size == 8 else (16, 32, 64)
    config = _small_models.resnet(channels=channels, widths=widths, num_labels=problem.classes)
    model = with_group_norm(ResNetForImageClassification(config))
    assert isinstance(model, PreTrainedModel)
    return model
