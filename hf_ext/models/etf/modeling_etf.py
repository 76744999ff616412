"""Classifiers of transformers whose last linear layer is a fixed simplex ETF.

Fan et al., "Federated Learning with Bilateral Curation for Partially Class-Disjoint Data", NeurIPS 2023,
https://arxiv.org/abs/2405.18972; without a federation: Yang et al., "Inducing Neural Collapse in Imbalanced Learning",
NeurIPS 2022, https://arxiv.org/abs/2203.09081.
"""

import inspect
import os
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, PreTrainedModel

from .classifier_etf import ETFClassifier
from .configuration_etf import ETFConfig
from .portable import carrying_code
from .portable_loading import LoadedWhole


class ETFPreTrainedModel(LoadedWhole):
    """A classifier of any architecture, with an `ETFClassifier` in the place of its last linear layer.

    It gives the classifier's own outputs, with its own loss.

    Args:
        config: with that of the classifier.
        model: the classifier, with its linear layer or the ETF already in its place; made if it is not given.
    """

    config: ETFConfig
    config_class = ETFConfig
    base_model_prefix = ""
    auto_class: Any = None
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ETFConfig, model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if model is None:
            model = self.auto_class.from_config(config.base_config)
        else:
            module: Any
            for module in model.modules():  # post_init must not initialise its loaded parameters again
                module._is_hf_initialized = True
        head: Any = model.get_submodule(config.etf_head)
        if not isinstance(head, ETFClassifier):
            model.set_submodule(config.etf_head, self.make_classifier(config, head))
        self.model: PreTrainedModel = model
        config.base_config = model.config
        # as the Trainer would find it out of the classifier itself: whether its loss is a sum over the whole batch
        parameters = inspect.signature(model.forward).parameters.values()
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self.accepts_loss_kwargs = getattr(model, "accepts_loss_kwargs", takes_any)
        self.supports_gradient_checkpointing: bool = model.supports_gradient_checkpointing
        self.main_input_name: str = model.main_input_name
        self.post_init()

    @staticmethod
    def make_classifier(config: ETFConfig, head: Any) -> ETFClassifier:
        """An ETF for the place of a linear layer, of its dtype and on its device.

        Raises:
            ValueError: features too narrow for as many classes.
        """
        labels: Any = config.num_labels
        classifier = ETFClassifier(
            head.in_features,
            labels,
            seed=config.etf_seed,
            temperature=config.etf_temperature,
            feature_norm=config.etf_feature_norm,
            projection_size=config.etf_projection_size,
        )
        return classifier.to(head.weight.device, head.weight.dtype)

    @property
    def classifier(self) -> ETFClassifier:
        """The ETF."""
        found: Any = self.model.get_submodule(self.config.etf_head)
        return found

    def initialize_weights(self) -> None:
        """As transformers does it, and an ETF that was not in the file, since it has another number of classes."""
        for module in self.modules():
            if isinstance(module, ETFClassifier):
                module.reset_if_empty()
        super().initialize_weights()

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        self.model._set_gradient_checkpointing(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Those of the classifier."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Those of the classifier."""
        self.model.set_input_embeddings(value)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save; with the files that define the model, so that it loads with `trust_remote_code=True` anywhere."""
        classes = {
            "AutoModelForImageClassification": ETFForImageClassification,
            "AutoModelForSequenceClassification": ETFForSequenceClassification,
        }
        with carrying_code(self, classes):
            super().save_pretrained(save_directory, *args, **kwargs)


class ETFForImageClassification(ETFPreTrainedModel):
    """An image classifier of any architecture, also of timm, with a fixed simplex ETF."""

    auto_class = AutoModelForImageClassification

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Loss and logits of images `[B, channels, H, W]`; further keywords are for the classifier."""
        return self.model(pixel_values=pixel_values, labels=labels, **kwargs)


class ETFForSequenceClassification(ETFPreTrainedModel):
    """A classifier of texts of any architecture, with a fixed simplex ETF."""

    auto_class = AutoModelForSequenceClassification

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loss and logits of texts `[B, S]`; further keywords are for the classifier."""
        named = {"token_type_ids": token_type_ids, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        given = {name: value for name, value in named.items() if value is not None}  # some classifiers lack some
        return self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **given, **kwargs)


__all__ = ["ETFForImageClassification", "ETFForSequenceClassification", "ETFPreTrainedModel"]
