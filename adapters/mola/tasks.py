"""From a MoLA adapter to single tasks and back: a merged model, a plain LoRA, a mixture made from LoRAs."""

import copy
import os
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_ext._files import read_json
from hf_ext.adapters.mola.config import MoLAConfig
from hf_ext.adapters.mola.exports import BASE_MODEL, refuse_other_models, swap_in, written_aside
from hf_ext.adapters.mola.layer import MoLAConv2d, MoLAHead, MoLALayer
from hf_ext.hub_cards.tasks import base_options

if TYPE_CHECKING:
    from hf_ext.adapters.mola.model import MoLAModel

_PEFT_PREFIX = "base_model.model."


def _check_task(tuner: "MoLAModel", task_id: Any, adapter_name: str | None, purpose: str) -> tuple[str, MoLAConfig]:
    if adapter_name is None:
        adapter_name = tuner.active_adapters[0]
    if adapter_name not in tuner.peft_config:
        raise ValueError(f"adapter_name: found {adapter_name!r}, allowed are {sorted(tuner.peft_config)}")
    config: MoLAConfig = tuner.peft_config[adapter_name]
    if config.routing != "task":
        raise ValueError(
            f"routing: found {config.routing!r}, allowed is 'task' to {purpose}: a router mixes the experts anew for "
            "every input, so no single weight equals it"
        )
    if isinstance(task_id, bool) or not isinstance(task_id, Integral) or not 0 <= int(task_id) < config.task_id_bound:
        raise ValueError(f"task_id: found {task_id!r}, allowed are 0 to {config.task_id_bound - 1}")
    return adapter_name, config


def merge_task(
    tuner: "MoLAModel", task_id: int, adapter_name: str | None = None, *, inplace: bool = False
) -> nn.Module:
    """A plain model for one task: `W + s D_t` in every adapted layer, the task's own heads, nothing of MoLA left.

    Args:
        tuner: the MoLA model (or call `peft_model.merge_task`).
        task_id: t.
        adapter_name: which adapter; the active one by default.
        inplace: turn the model itself into the plain one instead of a copy; saves memory, ends the adapter.

    Returns:
        A model of the base model's class, as fast as the base model.

    Raises:
        ValueError: the adapter routes by a router, or there is no such task.
    """
    adapter_name, _ = _check_task(tuner, task_id, adapter_name, "merge a task")
    if not inplace:
        tuner = copy.deepcopy(tuner)
    tuner.set_adapter(adapter_name)
    for module in tuner.model.modules():
        if isinstance(module, MoLALayer) and adapter_name in module.mola_A:
            weight, update = module.weight, module.task_update(adapter_name, task_id)
            _set(module, "weight", weight.to(update.dtype) + update.to(weight.device))
        elif isinstance(module, MoLAHead) and adapter_name in module.mola_head_weight:
            head, bias = module.task_head(adapter_name, task_id)
            _set(module, "weight", head)
            if bias is not None:
                _set(module, "bias", bias)
    model: Any = tuner.unload()
    if getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
        if None not in embeddings and embeddings[0].weight is not embeddings[1].weight:
            model.config.tie_word_embeddings = False  # or the next load would undo the merge
    return model


def _set(layer: MoLALayer | MoLAHead, name: str, value: Tensor) -> None:
    """A new parameter for the base layer: a change in place would reach layers that share the old one."""
    base = layer.get_base_layer()
    old = getattr(base, name)
    setattr(base, name, nn.Parameter(value.detach().to(old.dtype).clone(), requires_grad=old.requires_grad))


def export_lora(
    tuner: "MoLAModel", task_id: int, folder: str | os.PathLike[str], adapter_name: str | None = None
) -> None:
    """Write expert `task_id` as an ordinary LoRA adapter: any PEFT user loads it, without hf_ext, with equal outputs.

    Writes `adapter_config.json` and `adapter_model.safetensors`, and facts from which `hub_cards.create_card(folder)`
    makes the card of what was exported. Trained modules (`modules_to_save`, the task's heads) go along; with
    `train_backbone=True` the trained base model is written to `folder/base_model` and named as the adapter's base.

    A folder with an earlier export is written anew. The configuration is taken away first and written last, so that
    nobody, after a kill either, loads new weights with an old configuration.

    Args:
        tuner: the MoLA model (or call `peft_model.export_lora`).
        task_id: t.
        folder: made if needed.
        adapter_name: which adapter; the active one by default.

    Raises:
        ValueError: the adapter routes by a router, there is no such task, a layer has no LoRA form in peft (a k x k
            convolution in the loralib form, or with dilation), or the folder, by whatever path, holds an adapter or a
            model that is no earlier export, such as the mixture itself.
    """
    folder = Path(folder)
    refuse_other_models(folder)
    adapter_name, config = _check_task(tuner, task_id, adapter_name, "export an expert")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    saved_modules = set(config.modules_to_save or ())
    transposed = False
    for name, module in tuner.model.named_modules():
        key = f"{_PEFT_PREFIX}{name}"
        if isinstance(module, MoLALayer) and adapter_name in module.mola_A:
            lora_A, lora_B = _lora_pair(module, adapter_name, task_id, name)
            tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = lora_A, lora_B
            ranks[name] = lora_A.shape[0]
            root = ranks[name] ** 0.5 if config.use_rslora else ranks[name]
            alphas[name] = module.mola_scaling[adapter_name] * root
            transposed |= isinstance(module.get_base_layer(), Conv1D)
        elif isinstance(module, MoLAHead) and adapter_name in module.mola_head_weight:
            weight, bias = module.task_head(adapter_name, task_id)
            tensors[f"{key}.weight"] = weight
            if bias is not None:
                tensors[f"{key}.bias"] = bias
            saved_modules.add(name)
        elif isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            for part, value in module.modules_to_save[adapter_name].state_dict().items():
                tensors[f"{key}.{part}"] = value
    lora = LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        use_rslora=config.use_rslora,
        target_modules=sorted(ranks),
        rank_pattern={f"^{name}": rank for name, rank in ranks.items() if rank != config.r},
        alpha_pattern={f"^{name}": alpha for name, alpha in alphas.items() if alpha != config.lora_alpha},
        modules_to_save=sorted(saved_modules) or None,
        fan_in_fan_out=transposed,
    )
    note = (
        f"This is expert {task_id} of a mixture, exported as an ordinary LoRA for the samples of task {task_id}. It "
        "loads without hf_ext and is told no task ids; what follows is of the mixture it was trained in."
    )
    contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with written_aside(folder) as aside:
        if config.train_backbone:
            _save_backbone(tuner, aside / BASE_MODEL)
            lora.base_model_name_or_path = str(folder / BASE_MODEL)
        lora.save_pretrained(str(aside))
        save_file(contiguous, aside / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        swap_in(aside, folder, note=note, base_options=base_options(tuner.model))


def _lora_pair(layer: MoLALayer, adapter_name: str, task_id: int, name: str) -> tuple[Tensor, Tensor]:
    lora_A, lora_B = layer.mola_A[adapter_name][task_id], layer.mola_B[adapter_name][task_id]
    if not isinstance(layer, MoLAConv2d):
        return lora_A, lora_B
    conv: Any = layer.get_base_layer()
    if layer.mola_form[adapter_name] == "loralib" and conv.kernel_size != (1, 1):
        raise ValueError(
            f"conv_form: found 'loralib' for {name!r} (kernel {conv.kernel_size}), allowed is 'factored' to export an "
            "expert: peft's LoRA has no loralib form"
        )
    if conv.dilation != (1, 1) or conv.padding_mode != "zeros":
        raise ValueError(
            f"target_modules: found {name!r} with dilation {conv.dilation} and padding mode {conv.padding_mode!r}, "
            "allowed are (1, 1) and 'zeros' to export an expert: peft's LoRA convolutions have no other"
        )
    rank = lora_B.shape[-1]
    return lora_A.reshape(rank, conv.in_channels, *conv.kernel_size), lora_B[:, :, None, None]


def _save_backbone(tuner: "MoLAModel", folder: Path) -> None:
    base: Any = copy.deepcopy(tuner).unload()
    if not hasattr(base, "save_pretrained"):
        raise ValueError(
            f"train_backbone: found a trained {type(base).__name__} without save_pretrained, allowed are models that "
            "can write themselves to a folder"
        )
    base.save_pretrained(folder)


def from_loras(
    base_model: nn.Module, folders: list[str | os.PathLike[str]], adapter_name: str = "default", **config: Any
) -> PeftModel:
    """A MoLA-Grad whose expert e is the e-th of E trained LoRA adapters.

    Args:
        base_model: the model the LoRAs were trained on; adapted in place.
        folders: local folders of LoRA adapters (plain linear or convolution LoRA) of equal rank and targets.
        adapter_name: name of the new adapter.
        **config: further arguments of `MoLAConfig`, e.g. `routing="router"` to learn how to mix them.

    Returns:
        The PeftModel. With `routing="task"`, task e gives what the e-th LoRA gave.

    Raises:
        ValueError: fewer than one folder, a folder that is no plain LoRA in safetensors, or LoRAs that differ in rank,
            scale or targets.
    """
    if not folders:
        raise ValueError("folders: found none, allowed is one folder per expert")
    loaded = [_load_lora(Path(folder)) for folder in folders]
    first_config, first = loaded[0]
    for folder, (other_config, other) in zip(folders[1:], loaded[1:], strict=True):
        shapes, other_shapes = ({key: value.shape for key, value in lora.items()} for lora in (first, other))
        same_scale = all(
            getattr(first_config, name) == getattr(other_config, name)
            for name in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
        )
        if shapes != other_shapes or not same_scale:
            raise ValueError(f"folders: found {folder}, allowed are LoRAs of the same rank, scale and target modules")
    targets = sorted({key.removeprefix(_PEFT_PREFIX).rpartition(".lora_A.")[0] for key in first if ".lora_A." in key})
    mola = MoLAConfig(
        **{
            "target_modules": targets,
            "num_experts": len(folders),
            "r": first_config.r,
            "lora_alpha": first_config.lora_alpha,
            "use_rslora": first_config.use_rslora,
            "rank_pattern": first_config.rank_pattern,
            "alpha_pattern": first_config.alpha_pattern,
            "task_type": first_config.task_type,
            **config,
        }
    )
    model = get_peft_model(base_model, mola, adapter_name)
    with torch.no_grad():
        for name, module in model.get_base_model().named_modules():
            if isinstance(module, MoLALayer):
                for factor, stacked in (("lora_A", module.mola_A), ("lora_B", module.mola_B)):
                    experts = torch.stack([lora[f"{_PEFT_PREFIX}{name}.{factor}.weight"] for _, lora in loaded])
                    stacked[adapter_name].copy_(experts.reshape(stacked[adapter_name].shape))
    return model


def _load_lora(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file() or not (folder / "adapter_config.json").is_file():
        raise ValueError(f"folders: found {folder}, allowed is a folder with adapter_config.json and {file.name}")
    kind = read_json(folder / "adapter_config.json", "folders").get("peft_type")
    config = PeftConfig.from_pretrained(str(folder)) if kind == "LORA" else None
    tensors = load_file(file)
    plain = all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in tensors)
    if not isinstance(config, LoraConfig) or config.use_dora or not plain:
        raise ValueError(
            f"folders: found {folder} with peft_type {kind!r}, allowed are plain LoRA adapters (linear or convolution "
            "layers; no DoRA, no biases, no modules_to_save)"
        )
    return config, tensors
