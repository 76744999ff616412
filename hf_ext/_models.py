"""A model within its wrappers, and which of its parameters are new."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

_INITIALIZED = "_is_hf_initialized"  # transformers' mark of parameters that it has read from a checkpoint


def unwrapped(model: Any) -> Any:
    """Without the wrappers of DDP, FSDP, DeepSpeed and `torch.compile`; adapters stay."""
    from accelerate.utils import extract_model_from_parallel  # takes its time

    return extract_model_from_parallel(model, keep_torch_compile=False)


def base_model(model: Any) -> Any:
    """Without these wrappers and without PEFT's around it: the model of transformers, timm or the user's own."""
    model = unwrapped(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def any_read(model: Any) -> bool:
    """Whether transformers has read any parameter of this very object from a checkpoint."""
    return any(hasattr(parameter, _INITIALIZED) for parameter in model.parameters())


def new_parameters(model: Any) -> dict[str, Any]:
    """Parameters of a base model that its checkpoint did not have, by name: they have random values.

    Known of models that transformers has loaded (by `from_pretrained`, into this very object): it marks what it has
    read. Nothing is known of other models and of copies, and nothing is found. What a class says may be missing is
    left out, and so is what belongs to adapters.
    """
    if not any_read(model):
        return {}
    allowed = [*(getattr(model, "_keys_to_ignore_on_load_missing", None) or ()), r"\.(mola_|modules_to_save\.)"]
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not hasattr(parameter, _INITIALIZED) and not re.search("|".join(allowed), name)
    }


def modules_of(parameters: Iterable[str]) -> list[str]:
    """Names of the modules that hold parameters of these names, none in another, as `modules_to_save` takes them."""
    names = {name.rpartition(".")[0] for name in parameters} - {""}
    return sorted(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def with_new_modules(model: Any, saved: Sequence[str] | None) -> list[str] | None:
    """Names for `modules_to_save`, with those of modules that have new parameters, if they are in none of these."""
    saved = list(saved or ())
    new = modules_of(new_parameters(model))
    return [*saved, *(name for name in new if not any(f".{one}." in f".{name}." for one in saved))] or None
