"""A model within its wrappers."""

from typing import Any


def unwrapped(model: Any) -> Any:
    """Without the wrappers of DDP, FSDP, DeepSpeed and `torch.compile`; adapters stay."""
    from accelerate.utils import extract_model_from_parallel  # takes its time

    return extract_model_from_parallel(model, keep_torch_compile=False)


def base_model(model: Any) -> Any:
    """Without these wrappers and without PEFT's around it: the model of transformers, timm or the user's own."""
    model = unwrapped(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model
