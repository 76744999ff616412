"""What a base model has to be for an adapter to go in: refused before anything is changed, or right after."""

from collections.abc import Callable, Mapping
from typing import Any

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from hf_ext._models import modules_of
from hf_ext.adapters.mola.config import MoLAConfig
from hf_ext.adapters.mola.layer import MoLAHead
from hf_ext.adapters.mola.routing import RoutingModule
from hf_ext.adapters.mola.safety import PEFT_PREFIX
from hf_ext.adapters.mola.tuner_layer import TunerLayer

_GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")


def check_base(model: nn.Module, adapter_name: str) -> None:
    """Check that a model is none of peft's, and has no adapters but MoLA's of other names.

    Raises:
        ValueError: it is, or has.
    """
    ours = [module for module in model.modules() if isinstance(module, RoutingModule)]
    for name, module in model.named_modules():
        if isinstance(module, PeftModel | BaseTuner):
            raise ValueError(
                f"model: found a {type(module).__name__}, allowed is the base model in it, without adapters of other "
                "types: model.unload() gives it (a further adapter of MoLA goes in by model.add_adapter(name, config))"
            )
        foreign = isinstance(module, BaseTunerLayer) and not isinstance(module, TunerLayer)
        if foreign or (isinstance(module, AuxiliaryTrainingWrapper) and not ours):
            kind = f"{type(module).__module__}.{type(module).__name__}"
            raise ValueError(
                f"model: found an adapter of another type in {name!r} ({kind}), allowed is a base model without: "
                "call merge_and_unload() or unload() of the PeftModel around it before"
            )
    if any(adapter_name in routing.configs for routing in ours):
        raise ValueError(
            f"adapter_name: found {adapter_name!r}, which the model has already, allowed is another name, or the base "
            "model after unload()"
        )


def without_mola(original: Callable[..., None]) -> Callable[..., None]:
    """`BaseTuner.__init__`, for tuners of other types: they would wrap MoLA's layers, which their file does not hold.

    It is put around peft's own, see `hf_ext/_registration.py`.
    """

    def __init__(self: Any, model: nn.Module, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        routed = any(isinstance(module, RoutingModule) for module in model.modules())
        configs = [peft_config] if isinstance(peft_config, PeftConfig) else [*peft_config.values()]
        if routed and not any(isinstance(config, MoLAConfig) for config in configs):
            raise ValueError(
                f"model: found one with a MoLA adapter for a {type(self).__name__}, allowed is a model without: "
                "merge_task(task_id) of the PeftModel around it gives a plain one, unload() the base model"
            )
        original(self, model, peft_config, *args, **kwargs)

    return __init__


def check_task_type(model: nn.Module, config: PeftConfig) -> None:
    """Check that peft has a PeftModel for this model and the configuration's task type.

    Raises:
        ValueError: it has none.
    """
    if config.task_type in _GENERATING and not hasattr(model, "prepare_inputs_for_generation"):
        raise ValueError(
            f"task_type: found {str(config.task_type)!r} for a {type(model).__name__}, allowed is a task type that "
            "needs no generate, or None"
        )


def check_saved_modules(model: nn.Module, config: MoLAConfig) -> None:
    """Check that no module of `modules_to_save` is part of another: peft saves such, and then cannot load the file.

    Args:
        model: with the adapter.
        config: of the adapter.

    Raises:
        ValueError: one is.
    """
    wrappers = {name for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)}
    inner = {name: around for name in wrappers for around in wrappers if name.startswith(f"{around}.")}
    for name, around in sorted(inner.items()):
        raise ValueError(
            f"modules_to_save: found {config.modules_to_save!r}, names that {around!r} and {name!r} in it end with, "
            "allowed are modules that are not part of each other (longer names match fewer)"
        )


def embeddings_in_files(model: Any, needed: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors that peft's `save_embedding_layers` adds to a file: of all embeddings, or of the adapted ones.

    Args:
        model: with the adapter.
        needed: what is in the file for the adapter.
    """
    modules = [_embeddings(model, kind) for kind in ("input", "output")]
    names = {id(module): name for name, module in model.named_modules()}
    choices = []
    for chosen in (modules, [module for module in modules if isinstance(module, BaseTunerLayer)]):
        starts = tuple(f"{PEFT_PREFIX}{names[id(module)]}." for module in chosen if id(module) in names)
        state = {f"{PEFT_PREFIX}{key}": value for key, value in model.state_dict().items()}
        own = {key: one for key, one in state.items() if key.startswith(starts) and ".mola_" not in key}
        choices.append({key: one for key, one in own.items() if key not in needed})
    return choices if isinstance(modules[0], nn.Embedding) else []


def _embeddings(model: Any, kind: str) -> nn.Module | None:
    try:
        return getattr(model, f"get_{kind}_embeddings")()
    except (AttributeError, NotImplementedError):
        return None


def check_new_parameters(
    model: nn.Module, new: dict[str, nn.Parameter], config: MoLAConfig, adapter_name: str, saved: set[str]
) -> None:
    """Check that what the checkpoint did not have is in the adapter's file, or of no use to it.

    Args:
        model: with the adapter.
        new: the `new_parameters` before.
        config: of the adapter.
        adapter_name: of the adapter.
        saved: names of parameters of the base model that are saved with the adapter.

    Raises:
        ValueError: some of it is not; two loads of the adapter would give different outputs.
    """
    replaced = {
        id(parameter)
        for module in model.modules()
        if (isinstance(module, AuxiliaryTrainingWrapper) and adapter_name in module._adapters)
        or (isinstance(module, MoLAHead) and adapter_name in module.mola_head_weight)
        for parameter in module.parameters()
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    lost = {name: one for name, one in new.items() if id(one) not in replaced and names.get(id(one)) not in saved}
    if lost:
        embeddings = _resized_embeddings(model, config)
        lost = {name: one for name, one in lost.items() if id(one) not in embeddings}
    if lost:
        modules = [*(config.modules_to_save or ()), *modules_of(lost)]
        raise ValueError(
            f"modules_to_save: found {config.modules_to_save!r}, while {sorted(lost)} of the "
            f"{type(model).__name__} have new, random values that its checkpoint does not hold; allowed is "
            f"{modules!r}, which trains and saves them (or task_heads, train_backbone, or a base model loaded from a "
            "checkpoint that has them)"
        )


def _resized_embeddings(model: Any, config: MoLAConfig) -> set[int]:
    """Ids of the parameters that peft saves along, since the checkpoint's vocabulary has another size."""
    size, place = getattr(getattr(model, "config", None), "vocab_size", None), config.base_model_name_or_path
    if not size or not place:
        return set()
    try:
        known = type(model.config).from_pretrained(place, local_files_only=True).vocab_size
    except (OSError, ValueError, AttributeError):
        return set()
    modules = [_embeddings(model, kind) for kind in ("input", "output")] if known != size else []
    return {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
