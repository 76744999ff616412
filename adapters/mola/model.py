"""The tuner: puts MoLA layers into a base model and knows what belongs to an adapter."""

import re
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from peft import PeftConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    AuxiliaryTrainingWrapper,
    resolve_quantization_backend,
)
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_ext._models import new_parameters
from hf_ext.adapters._unchanged import unchanged_on_error
from hf_ext.adapters.mola.checks import (
    check_base,
    check_new_parameters,
    check_saved_modules,
    check_task_type,
    embeddings_in_files,
)
from hf_ext.adapters.mola.config import MoLAConfig
from hf_ext.adapters.mola.layer import MoLAConv2d, MoLAHead, MoLALayer, MoLALinear
from hf_ext.adapters.mola.loading import current_load
from hf_ext.adapters.mola.routing import (
    ROUTING_ATTRIBUTE,
    Routing,
    RoutingModule,
    TaskIds,
    TaskSetting,
    find_routing,
    set_task,
)
from hf_ext.adapters.mola.safety import SavedTensors
from hf_ext.adapters.mola.tasks import export_lora, merge_task

_NO_SINGLE_WEIGHT = (
    "merge: found a mixture of adapters, which has no single merged weight; allowed is merge_task(task_id) with "
    "routing='task'"
)


class MoLAModel(BaseTuner):
    """Mixture of low-rank adapters for heterogeneous data (MoLA of Zhou et al., ICML 2024) as a PEFT tuner.

    Made by `peft.get_peft_model(model, MoLAConfig(...))` and the loading functions of peft and transformers. Its own
    methods are reachable through the PeftModel: `set_task`, `merge_task`, `export_lora`.

    The base model's forward takes one more keyword, `mola_task_ids`: int64 `[B]`, or one int for the whole batch. Its
    parts that take inputs do so too; `generate` is routed once, by the prompts.
    """

    prefix: str = "mola_"
    peft_config: dict[str, MoLAConfig]  # type: ignore[assignment]
    tuner_layer_cls = (MoLALayer, MoLAHead, RoutingModule)  # type: ignore[assignment]
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING  # type: ignore[assignment]

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        alone = isinstance(peft_config, PeftConfig)  # not in a PeftModel
        config = peft_config if alone else peft_config[adapter_name]
        with unchanged_on_error(model, config) as before:
            load = current_load()
            if load is not None and load.before is None:
                load.before = before
            check_base(model, adapter_name)
            if not alone:
                check_task_type(model, config)
            super().__init__(model, peft_config, adapter_name, *args, **kwargs)

    # ---------------------------------------------------------------------------------------------- injection
    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the adapter's layers into the base model, then its router.

        Raises:
            ValueError: the model has other adapters or this one, a layer that cannot be adapted was named, the adapter
                does not go with those present, the adapter's file is not as its configuration says, or the model has
                new parameters that the adapter does not save. The model is then unchanged.
        """
        config = self.peft_config[adapter_name]
        with unchanged_on_error(self, config):
            check_base(model, adapter_name)
            new = new_parameters(model)
            load = current_load()
            self._saved = SavedTensors() if load is None else load.tensors(config)
            try:
                self._inject(_uncompiled(model), adapter_name, *args, **kwargs)
            except (TypeError, re.error) as error:  # peft's, of modules_to_save that cannot be, and of patterns
                raise ValueError(f"modules_to_save, layers_pattern: found what peft cannot take ({error})") from error
            check_saved_modules(model, config)
            self.check_saved(adapter_name, self._saved)
            saved = self._saved_of_base(adapter_name) | self._saved.names
            check_new_parameters(model, new, config, adapter_name, saved)
            self._saved = SavedTensors()

    def _inject(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        attached: RoutingModule | None = getattr(model, ROUTING_ATTRIBUTE, None)
        self._routing = attached.routing if attached is not None else Routing()
        super().inject_adapter(self.model, adapter_name, *args, **kwargs)
        if not any(isinstance(module, MoLALayer) and adapter_name in module.mola_A for module in model.modules()):
            raise ValueError(
                f"target_modules: found {config.target_modules!r}, which leave no layer to adapt; allowed are names "
                "of Linear, transformers' Conv1D and ungrouped Conv2d"
            )
        heads = self._inject_heads(model, adapter_name, config)
        if attached is None:
            # only now: peft takes a tuner layer that exists before the first injection for an earlier adapter's, and
            # would leave the base model trainable
            attached = RoutingModule(model, self._routing)
            model.add_module(ROUTING_ATTRIBUTE, attached)
        attached.add_adapter(adapter_name, config, model, partial(self._saved.take, ROUTING_ATTRIBUTE))
        trainable = adapter_name in self.active_adapters and not config.inference_mode
        for module in (attached, *heads):
            module._active_adapter = self.active_adapters
            module.set_requires_grad(adapter_name, trainable)

    def check_saved(self, adapter_name: str, saved: SavedTensors) -> None:
        """Check a file against the adapter's layers; see `SavedTensors.check`."""
        needed = {f"base_model.{key}": value for key, value in self._saved_state(adapter_name).items()}
        saved.check(needed, embeddings_in_files(self.model, needed))

    def _saved_state(self, adapter_name: str) -> dict[str, Tensor]:
        """What is saved of an adapter, without embeddings."""
        return get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)

    def _saved_of_base(self, adapter_name: str) -> set[str]:
        return {key.removeprefix("model.") for key in self._saved_state(adapter_name)}

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        super()._check_new_adapter_config(config)
        alone = len(self.peft_config) == 1
        if not alone and any(getattr(other, "train_backbone", False) for other in self.peft_config.values()):
            raise ValueError(
                f"train_backbone: found True among the adapters {sorted(self.peft_config)}, allowed is a single "
                "adapter on a base model that it trains"
            )

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        if _names(key, peft_config.task_heads):
            return False  # each task gets its own copy of this layer
        return BaseTuner._check_target_module_exists(peft_config, key)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        r = peft_config.rank_pattern.get(get_pattern_key(peft_config.rank_pattern, current_key), peft_config.r)
        alpha_key = get_pattern_key(peft_config.alpha_pattern, current_key)
        lora_alpha = peft_config.alpha_pattern.get(alpha_key, peft_config.lora_alpha)
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(
                f"target_modules: found {current_key!r} of a MultiheadAttention, which reads its weight and never "
                f"calls it, allowed are layers that are called (exclude_modules=[{target_name!r}])"
            )
        if not isinstance(target, MoLALayer):
            layer_class = self._layer_class(peft_config, target, current_key)
            if layer_class is None:
                return
            base, target = target, layer_class(target, self._routing)
            self._replace_module(parent, target_name, target, base)
            if isinstance(parent, nn.TransformerEncoderLayer):
                target.register_forward_hook(_is_called)
        target.update_layer(adapter_name, peft_config, r, lora_alpha, partial(self._saved.take, current_key))

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):  # unloaded; it may have no weight, which peft would hand on
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _layer_class(self, config: MoLAConfig, target: nn.Module, key: str) -> type[MoLALayer] | None:
        """The MoLA layer for a module; `None` to leave out one that was not named itself."""
        if resolve_quantization_backend(target) is not None:
            raise ValueError(
                f"target_modules: found {key!r}, a quantised {type(target).__name__}; allowed are layers of floating "
                "point numbers (load the base model without quantization_config)"
            )
        if isinstance(target, nn.Linear | Conv1D):
            return MoLALinear
        if isinstance(target, nn.Conv2d):
            if target.groups == 1:
                return MoLAConv2d
            if isinstance(config.target_modules, str) or not _names(key, config.target_modules):
                return None  # matched by a pattern for all
            found = f"a convolution with groups={target.groups}"
        else:
            found = f"a {type(target).__name__}"
        raise ValueError(
            f"target_modules: found {key!r}, {found}; allowed are Linear, transformers' Conv1D and ungrouped Conv2d"
        )

    def _inject_heads(self, model: nn.Module, adapter_name: str, config: MoLAConfig) -> list[MoLAHead]:
        heads = []
        for name in config.task_heads or ():
            matches = [key for key, _ in model.named_modules() if _names(key, [name])]
            if not matches:
                raise ValueError(f"task_heads: found {name!r}, which the model does not have")
            for key in matches:
                head = model.get_submodule(key)
                if not isinstance(head, MoLAHead):
                    if not isinstance(head, nn.Linear):
                        raise ValueError(
                            f"task_heads: found {key!r}, a {type(head).__name__}; allowed are linear layers that are "
                            "neither in target_modules nor in modules_to_save"
                        )
                    head.requires_grad_(False)
                    parent, _, child = key.rpartition(".")
                    head = MoLAHead(head, self._routing)
                    setattr(model.get_submodule(parent), child, head)
                head.update_layer(adapter_name, config, partial(self._saved.take, key))
                heads.append(head)
        return heads

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        super()._mark_only_adapters_as_trainable(model)
        for name in self.active_adapters:
            config = self.peft_config[name]
            if config.train_backbone and not config.inference_mode:
                for parameter in _backbone_parameters(model):
                    parameter.requires_grad = True

    # ---------------------------------------------------------------------------------------------- saving
    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        own = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        if not config.train_backbone:
            return own
        # a trained backbone travels in the adapter's file: whatever loads the adapter restores it too
        wrapped = tuple(
            f"{name}." for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)
        )
        return own | {key: value for key, value in state_dict.items() if not key.startswith(wrapped)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # peft strips the name at the last or second last place; a router's keys go deeper
        for container in RoutingModule.adapter_layer_names:
            marker = f"{ROUTING_ATTRIBUTE}.{container}."
            if marker in key:
                return key.replace(f"{marker}{adapter_name}.", marker, 1)
        if ".mola_" in key:
            return super()._remove_adapter_name_from_key(key, adapter_name)
        return key

    # ---------------------------------------------------------------------------------------------- switching
    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters the active ones.

        Raises:
            ValueError: the model has none of such a name; the active ones stay.
        """
        for name in [adapter_name] if isinstance(adapter_name, str) else adapter_name:
            if name not in self.peft_config:
                raise ValueError(f"adapter_name: found {name!r}, allowed are {sorted(self.peft_config)}")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter. Of those that stay, the active ones stay active, or else the first by name becomes so."""
        was_active = adapter_name in self.active_adapters
        active = [name for name in self.active_adapters if name != adapter_name]
        super().delete_adapter(adapter_name)
        if was_active:  # every layer has chosen among the adapters that it has itself, which may differ
            remaining = active or sorted(self.peft_config)[:1]
            if remaining:
                self.set_adapter(remaining)
            self.active_adapter = remaining

    def disable_adapter_layers(self) -> None:
        """Disable all adapters; a trained base model stays as trained, with a warning."""
        if any(self.peft_config[name].train_backbone for name in self.active_adapters):
            warnings.warn(
                "Careful, disabling adapter layers with train_backbone=True does not produce the same output as the "
                "base model would without adaption.",
                stacklevel=2,
            )
        super().disable_adapter_layers()

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        for name in ("adapter_names", "alora_offsets"):  # peft takes them out of the call, used or not
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name}: found {kwargs[name]!r}, allowed is None: MoLA mixes within an adapter by mola_task_ids, "
                    "and set_adapter picks the adapter"
                )
        return nullcontext()

    # ---------------------------------------------------------------------------------------------- leaving
    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Refused: see `merge_task`."""
        raise ValueError(_NO_SINGLE_WEIGHT)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: see `merge_task`."""
        raise ValueError(_NO_SINGLE_WEIGHT)

    def unload(self) -> nn.Module:
        """The base model without any MoLA part; per-task heads and adapters are dropped."""
        model = super().unload()
        owner = _uncompiled(model)
        attached = getattr(owner, ROUTING_ATTRIBUTE, None)
        if attached is not None:
            attached.remove()
            delattr(owner, ROUTING_ATTRIBUTE)
        return model

    # ---------------------------------------------------------------------------------------------- tasks
    def set_task(self, task_ids: TaskIds | None) -> TaskSetting:
        """Ids for calls that cannot pass `mola_task_ids`; see `hf_ext.adapters.mola.set_task`."""
        return set_task(self.model, task_ids)

    def merge_task(self, task_id: int, adapter_name: str | None = None, *, inplace: bool = False) -> nn.Module:
        """A plain base model for one task, `W + s D_t` in every adapted layer; see `tasks.merge_task`."""
        return merge_task(self, task_id, adapter_name, inplace=inplace)

    def export_lora(self, task_id: int, folder: str, adapter_name: str | None = None) -> None:
        """Expert `task_id` as an ordinary LoRA adapter that peft loads without hf_ext; see `tasks.export_lora`."""
        export_lora(self, task_id, folder, adapter_name)

    @property
    def routing(self) -> Routing:
        """Routing of the last forward."""
        attached = find_routing(self.model)
        if attached is None:
            warnings.warn("no MoLA adapter is left in this model", stacklevel=2)
            return Routing()
        return attached.routing


def _is_called(*_: Any) -> None:
    """A hook for layers in torch's own encoder, which in evaluation reads their weights unless one of them has any."""


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model in one of `torch.compile`, whose forward says nothing of its arguments."""
    return getattr(model, "_orig_mod", model)


def _names(key: str, names: Iterable[str] | None) -> bool:
    """Whether a module's path is one of `names` or ends in one, as peft matches names."""
    return any(key == name or key.endswith(f".{name}") for name in names or ())


def _backbone_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Floating point parameters of the base model that its forward uses: nothing of the adapters, nothing that
    `modules_to_save` or per-task heads stand in for (unused parameters would break DDP)."""
    replaced = tuple(
        f"{name}.base_layer." if isinstance(module, MoLAHead) else f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, MoLAHead | AuxiliaryTrainingWrapper)
    )
    return [
        parameter
        for name, parameter in model.named_parameters()
        if ".mola_" not in name and not name.startswith(replaced) and parameter.is_floating_point()
    ]
