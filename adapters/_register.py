"""Registration of adapter types that PEFT does not know.

`peft.utils.register_peft_method` takes members of PEFT's own closed enum only. A member of a str enum of our own
hashes and compares as its string and has the `.value` that peft, Trainer and transformers read, so it serves as the
key of PEFT's public tables, which are there to be filled. What else of peft is changed, for want of a hook, is listed
as `REPLACEMENTS` in `hf_ext/_registration.py`.
"""

from enum import StrEnum
from typing import Any

from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner


class HfExtPeftType(StrEnum):
    """Our PEFT types. A configuration sets `peft_type` to its member in `__post_init__`."""

    MOLA = "MOLA"

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"  # as peft's own, of which it shows what comes after the dot


def register_adapter(
    peft_type: StrEnum, config_cls: type[PeftConfig], model_cls: type[BaseTuner], prefix: str
) -> None:
    """Makes an adapter type known to PEFT. Repeating it is harmless, and of reloaded classes the newer ones count.

    Args:
        peft_type: member of a str enum, as written to adapter_config.json.
        config_cls: configuration class.
        model_cls: tuner class.
        prefix: start of the names of the adapter's parameters.

    Raises:
        ValueError: the type or the prefix belongs to somebody else.
    """
    configs: dict[Any, type[PeftConfig]] = mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    tuners: dict[Any, type[BaseTuner]] = mapping.PEFT_TYPE_TO_TUNER_MAPPING
    prefixes: dict[Any, str] = mapping.PEFT_TYPE_TO_PREFIX_MAPPING
    owner = configs.get(peft_type)
    if owner is not None and _name(owner) != _name(config_cls):
        raise ValueError(
            f"the PEFT type {peft_type} of {_name(config_cls)} already belongs to {_name(owner)}: an older release of "
            "that package or a newer one of hf-ext may not clash"
        )
    for other, taken in prefixes.items():
        if taken == prefix and other != peft_type:
            raise ValueError(f"prefix: found {prefix!r} for the PEFT type {peft_type}, but it belongs to {other}")
    configs[peft_type] = config_cls
    tuners[peft_type] = model_cls
    prefixes[peft_type] = prefix


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
