"""Configuration of classifiers with a fixed simplex ETF."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import AutoConfig

from .portable import Number, as_config, as_number

#: set in either configuration, they are set in both
_SHARED = ("id2label", "label2id", "problem_type", "pad_token_id", "bos_token_id", "eos_token_id")

#: feature norms, and what logits are divided by where nothing is said: only bounded features leave the sharpness to it
TEMPERATURES = {"l2": 0.1, "batch": 1.0, "none": 1.0}


@strict
class ETFConfig(PreTrainedConfig):
    r"""Configuration of a classifier of transformers whose last linear layer is a fixed simplex ETF.

    What it lacks itself (`hidden_size`, `image_size`, ...) is that of `base_config`. Labels, the kind of problem and
    special tokens of both are the same: setting either sets both.

    Args:
        base_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the classifier, of any `model_type`; by default that of a ViT.
        etf_head (`str`, *optional*, defaults to `"classifier"`):
            Name of its last linear layer, whose place the ETF takes.
        etf_seed (`int`, *optional*, defaults to 0):
            What the ETF follows from.
        etf_temperature (`float`, *optional*):
            What logits are divided by; by default 0.1 with `"l2"`, else 1.
        etf_feature_norm (`str`, *optional*, defaults to `"l2"`):
            `"l2"`, `"batch"` or `"none"`.
        etf_projection_size (`int`, *optional*):
            Width of a learnt linear layer before the ETF; none by default.

    Raises:
        ValueError: a value that is not allowed.
    """

    model_type = "etf"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}

    base_config: dict | PreTrainedConfig | None = None
    etf_head: str = "classifier"
    etf_seed: Number = 0
    etf_temperature: Number | None = None
    etf_feature_norm: str = "l2"
    etf_projection_size: Number | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check()
        if self.base_config is not None:
            self.base_config = as_config(self.base_config, "base_config")
        spec = self.sub_configs_defaults["base_config"]
        base, kwargs = spec.create_subconfig("base_config", self.base_config, **kwargs)
        self.base_config = base
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label, self.label2id = base.id2label, base.label2id
        if self.problem_type is None:
            self.problem_type = base.problem_type
        # of a classifier given as a configuration: the parent class would set this configuration's there
        kwargs.setdefault("attn_implementation", base._attn_implementation)
        super().__post_init__(**kwargs)
        for name in _SHARED[:3]:
            setattr(self, name, getattr(self, name))

    def _check(self) -> None:
        self.etf_seed = as_number(self.etf_seed, "etf_seed", at_least=0, integer=True)
        if self.etf_projection_size is not None:
            size = as_number(self.etf_projection_size, "etf_projection_size", at_least=1, integer=True)
            self.etf_projection_size = size
        self.etf_feature_norm, self.etf_temperature = check_view(self.etf_feature_norm, self.etf_temperature, "etf_")

    def __getattr__(self, name: str) -> Any:
        base = self.__dict__.get("base_config")
        if name.startswith("_") or name == "auto_map" or not isinstance(base, PreTrainedConfig):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _SHARED and isinstance(base := self.__dict__.get("base_config"), PreTrainedConfig):
            setattr(base, name, value)
            for written in ("label_names", "num_classes"):  # TimmWrapperConfig would save those that it was read with
                vars(base).pop(written, None)


def check_view(feature_norm: str, temperature: float | None, prefix: str = "") -> tuple[str, float]:
    """Feature norm and temperature, the norm's default in place of None.

    Raises:
        ValueError: a value that is not allowed.
    """
    if feature_norm not in TEMPERATURES:
        raise ValueError(f"{prefix}feature_norm: found {feature_norm!r}, allowed are {', '.join(TEMPERATURES)}")
    if temperature is None:
        return feature_norm, TEMPERATURES[feature_norm]
    return feature_norm, float(as_number(temperature, f"{prefix}temperature", above=0))


__all__ = ["ETFConfig"]
