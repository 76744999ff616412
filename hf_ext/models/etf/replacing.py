"""A fixed simplex ETF in the place of a classifier's last linear layer. This file does not travel."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_ext.models.etf.configuration_etf import ETFConfig
from hf_ext.models.etf.modeling_etf import (
    ETFForImageClassification,
    ETFForSequenceClassification,
    ETFPreTrainedModel,
)
from hf_ext.models.rd.student_rd import head_names

_KINDS: tuple[type[ETFPreTrainedModel], ...] = (ETFForImageClassification, ETFForSequenceClassification)


def replace_classifier(
    model: PreTrainedModel,
    *,
    seed: int = 0,
    temperature: float | None = None,
    feature_norm: str = "l2",
    projection_size: int | None = None,
    classifier: str | None = None,
) -> Any:
    """The same model with a fixed simplex ETF in the place of its last linear layer; see `ETFClassifier`.

    Args:
        model: a `...ForImageClassification` (also one that wraps a timm model) or `...ForSequenceClassification` of
            transformers, with the labels of the task. It becomes a part of the result; refused, it is left as it is.
        seed, temperature, feature_norm, projection_size: of `ETFClassifier`.
        classifier: name of the layer, by default the only linear one after the base model with an output per label.

    Returns:
        An `ETFForImageClassification` or `ETFForSequenceClassification`: saved, loaded and pushed as any model.

    Raises:
        ValueError: a model of another kind, without one such layer, or with features too narrow for its classes.
    """
    kind = _kind_of(model)
    name = _head_of(model, classifier)
    config = ETFConfig(
        base_config=model.config,
        etf_head=name,
        etf_seed=seed,
        etf_temperature=temperature,
        etf_feature_norm=feature_norm,
        etf_projection_size=projection_size,
    )
    replaced = kind.make_classifier(config, model.get_submodule(name))  # refuses before anything is changed
    model.set_submodule(name, replaced)
    return kind(config, model).train(model.training)


def _kind_of(model: Any) -> type[ETFPreTrainedModel]:
    if isinstance(model, ETFPreTrainedModel):
        raise ValueError(f"model: found {type(model).__name__}, which has a simplex ETF, allowed is one that has none")
    if isinstance(model, PreTrainedModel):
        for kind in _KINDS:
            made = kind.auto_class._model_mapping.get(type(model.config), ())
            if type(model) in (made if isinstance(made, list | tuple) else (made,)):
                return kind
    raise ValueError(
        f"model: found {type(model).__name__}, allowed are image and sequence classifiers of transformers: what "
        "AutoModelForImageClassification or AutoModelForSequenceClassification gives (before adapters are added)"
    )


def _head_of(model: PreTrainedModel, name: str | None) -> str:
    linear = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    labels = model.config.num_labels
    fitting = [path for path, module in linear.items() if module.out_features == labels]
    heads = [path for path in head_names(model, linear) if path in fitting] if name is None else [name]
    if len(heads) == 1 and heads[0] in fitting:
        return heads[0]
    found = ", ".join(heads) or f"none among {', '.join(linear) or 'no linear layers'}"
    raise ValueError(
        f"classifier: found {found} in {type(model).__name__}, allowed is the name of one Linear with {labels} "
        "outputs, one a label"
    )
