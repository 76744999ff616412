"""Configuration of the FER matcher."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto import AutoConfig

from .portable import Number, as_config, as_number


@strict
class FERConfig(PreTrainedConfig):
    """Configuration of `FERModel` and `FERForImageClassification`, made by `FERForImageClassification.from_backbones`.

    Args:
        vision_config: of the vision backbone, any model of transformers (or timm, wrapped) with a pooled output.
        vision_width: width of that pooled output.
        vision_pools: whether there is one; otherwise the first token is taken.
        text_width: D, width of the text features.
        projection: from the one width to the other: `"linear"`, without bias; `"neck"`, the authors' Linear,
            BatchNorm, Linear, BatchNorm; or `"none"`, for equal widths.
        transformation_width: width of the hidden layer of the emotional-to-neutral transformation.
        class_prompts: the texts of the classes, in the order of their ids; None before they are set.
        neutral_id: id of the neutral class; None, without one, turns the last two losses off.
        logit_scale: s, the scale of the logits.
        learn_logit_scale: whether s is trained, at most 100.
        contrast_pairs: `"all"` or `"paired"`, see `hf_ext.functional.fer_losses`.
        lambda_s, lambda_t, lambda_c: coefficients of the losses for matching, transformation and contrast.
        text_model: name of the text encoder, for readers.

    Raises:
        ValueError: values out of range, or another number of classes than of prompts.
    """

    model_type = "fer"
    sub_configs_defaults: ClassVar = {"vision_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_width: Number = 2048
    vision_pools: bool = True
    text_width: Number = 512
    projection: Literal["linear", "neck", "none"] = "linear"
    transformation_width: Number = 128
    class_prompts: list[str] | None = None
    neutral_id: Number | None = None
    logit_scale: Number = 100.0
    learn_logit_scale: bool = False
    contrast_pairs: Literal["all", "paired"] = "all"
    lambda_s: Number = 1.0
    lambda_t: Number = 1.0
    lambda_c: Number = 1.0
    text_model: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is not None:
            self.vision_config = as_config(self.vision_config, "vision_config")
        super().__post_init__(**kwargs)
        for name in ("vision_width", "text_width", "transformation_width"):
            setattr(self, name, as_number(getattr(self, name), name, at_least=1, integer=True))
        for name in ("lambda_s", "lambda_t", "lambda_c"):
            setattr(self, name, as_number(getattr(self, name), name, at_least=0))
        self.logit_scale = as_number(self.logit_scale, "logit_scale", above=0)
        if self.learn_logit_scale and self.logit_scale > 100:
            raise ValueError(f"logit_scale: found {self.logit_scale}, allowed are at most 100 if it is learnt")
        if self.projection == "none" and self.vision_width != self.text_width:
            raise ValueError(
                f"projection: found 'none' for the widths {self.vision_width} and {self.text_width}, allowed are "
                "'linear', 'neck', or equal widths"
            )
        if self.neutral_id is not None:
            self.neutral_id = as_number(self.neutral_id, "neutral_id", integer=True)
            if not 0 <= self.neutral_id < (self.num_labels or 0):
                raise ValueError(
                    f"neutral_id: found {self.neutral_id}, allowed are None, or 0 to {self.num_labels} - 1"
                )
        if self.class_prompts is not None and len(self.class_prompts) != self.num_labels:
            raise ValueError(
                f"num_labels: found {self.num_labels} for {len(self.class_prompts)} class prompts, allowed is as "
                "many; set_classes gives a model other classes"
            )
