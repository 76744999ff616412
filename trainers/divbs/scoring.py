"""Scores of candidates: a forward pass that leaves no trace, and the factors of every sample's last-layer gradient."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_ext._models import base_model
from hf_ext.functional import (
    logit_residuals,
    per_sample_losses,
    sequence_gradients,
    sequence_means,
    sequence_sketch,
    sketch_projections,
)
from hf_ext.functional.losses import IGNORED_LABEL
from hf_ext.trainers.losses import label_places, logits_of

_HEADS = ("classifier", "score", "fc", "head", "classification_head", "lm_head")
_LABELS = ("shift_labels", "labels")


class Scores(NamedTuple):
    """Of every sample: factors of its gradient `residuals outer features`, its loss, and how many labels it has."""

    residuals: Tensor
    features: Tensor
    losses: Tensor
    counts: Tensor

    def mean_loss(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Mean over the labels of some samples."""
        losses, counts = self.losses[rows], self.counts[rows]
        return (losses * counts).sum() / counts.sum().clamp(min=1)


# ------------------------------------------------------------------------------------------------ the head
def find_head(model: Any, name: str | None, argument: str) -> nn.Module:
    """The last linear layer of a model, PEFT's wrapper around it included.

    Args:
        model: without the wrappers of accelerate.
        name: of the module, or None to look where models of transformers and timm have theirs.
        argument: that brought the name, for the error.

    Raises:
        ValueError: there is none, or the named module is not one linear layer.
    """
    base = base_model(model)
    if name is not None:
        for place in (base, model):
            try:
                module = place.get_submodule(name)
            except AttributeError:
                continue
            if _is_linear(module):
                return module
            raise ValueError(f"{argument}: found {name!r}, a {type(module).__name__}, allowed is one linear layer")
        raise ValueError(f"{argument}: found {name!r}, allowed are modules of {type(base).__name__}")
    for module in _possible_heads(base):
        if getattr(module, "makes_logits", False):
            return module
        if isinstance(module, nn.Module) and (head := _last_linear(module)) is not None:
            return head
    raise ValueError(
        f"{argument}: found nothing and no linear {', '.join(_HEADS)} in {type(base).__name__}, allowed is the name "
        "of the linear layer that makes the logits"
    )


def _possible_heads(base: Any) -> Iterator[Any]:
    for place in (base, getattr(base, "timm_model", None)):
        for getter in ("get_output_embeddings", "get_classifier"):
            try:
                yield getattr(place, getter)()
            except (AttributeError, NotImplementedError):
                continue
    for name in _HEADS:
        yield getattr(base, name, None)


def _is_linear(module: Any) -> bool:
    while not isinstance(module, nn.Linear | Conv1D):
        inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if inner is None:
            return False
        module = inner
    return True


def _last_linear(module: nn.Module) -> nn.Module | None:
    if _is_linear(module):
        return module
    heads = [_last_linear(child) for child in module.children()]
    return next((head for head in reversed(heads) if head is not None), None)


# ------------------------------------------------------------------------------------------------ the model's state
@contextmanager
def state_preserved(model: nn.Module, seed: int) -> Iterator[None]:
    """Whatever happens within: every module's mode, the buffers (of BatchNorm) and the random state are put back.

    Within, the random state is that of `seed`, so that a resumed run draws the same.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({value.device.index for value in model.parameters() if value.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, mode in modes:
            module.training = mode


def computed_in(dtype: str | None, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to a dtype of torch by name; None changes nothing."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=getattr(torch, dtype))


# ------------------------------------------------------------------------------------------------ scoring
class Scorer:
    """Makes `Scores` of prepared inputs.

    Args:
        head: the module whose input and output are looked at.
        shift_labels: position i predicts label i + 1 (causal language models).
        features: of sequences: `"sketch"`, `"pooled"` or `"exact"`.
        sketch_dim: numbers a side of a sketch.
        seed: of the sketch's projections.
    """

    def __init__(
        self,
        *,
        shift_labels: bool,
        features: Literal["sketch", "pooled", "exact"],
        sketch_dim: int,
        seed: int,
    ) -> None:
        self.shift_labels = shift_labels
        self.features = features
        self.sketch_dim = sketch_dim
        self.seed = seed
        self._projections: tuple[Any, tuple[Tensor | None, Tensor | None]] = (None, (None, None))

    def __call__(self, model: Any, head: nn.Module, inputs: Mapping[str, Any]) -> Scores:
        """Scores of all rows of `inputs`, which are as `training_step` gets them.

        Raises:
            ValueError: no labels, or a model whose logits are not what the head makes.
        """
        targets = {name: inputs[name] for name in _LABELS if inputs.get(name) is not None}
        if not targets:
            raise ValueError(f"labels: found none among {sorted(inputs)}, allowed are batches with labels")
        if "candidate_ids" in inputs:
            raise ValueError(
                "candidate_ids: found some in a batch, allowed is none (logits of all items): the columns of the last "
                "layer's gradient have to be the same items in all rows (or divbs_strategy='uniform')"
            )
        labels = label_places(model, inputs, next(iter(targets.values())))
        shift = self.shift_labels and "shift_labels" not in targets
        captured: dict[str, Any] = {}

        def capture(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            captured["hidden"], captured["output"] = args[0] if args else next(iter(kwargs.values())), output

        hook = head.register_forward_hook(capture, with_kwargs=True)
        try:
            outputs = model(**_without_labels(model, inputs, labels))
        finally:
            hook.remove()
        logits = logits_of(outputs, with_loss=False)
        if not captured or not isinstance(logits, Tensor):
            raise ValueError(
                f"divbs_head_module: found {type(head).__name__}, which this forward pass does not call or whose "
                "logits it does not return, allowed is the layer that makes the logits"
            )
        hidden = captured["hidden"]
        if logits.ndim == 2 and hidden.ndim == 3:
            hidden = _pooled(hidden, captured["output"], logits)
        if hidden.shape[:-1] != logits.shape[:-1]:
            raise ValueError(
                f"divbs_head_module: found a layer whose input has shape {tuple(hidden.shape)} for logits "
                f"{tuple(logits.shape)}, allowed is the layer that makes the logits"
            )
        with torch.autocast(logits.device.type, enabled=False):
            if logits.ndim == 3:
                return self._of_sequences(hidden, logits, labels, shift)
            return _of_samples(hidden, logits, labels, getattr(getattr(model, "config", None), "problem_type", None))

    def _of_sequences(self, hidden: Tensor, logits: Tensor, labels: Tensor, shift: bool) -> Scores:
        if shift:
            hidden, logits, labels = hidden[:, :-1], logits[:, :-1], labels[:, 1:]
        residuals = logits.new_ones(len(logits), 1, dtype=torch.float32)
        if self.features == "sketch":
            features = sequence_sketch(hidden, logits, labels, self._projections_for(hidden, logits))
        elif self.features == "exact":
            features = sequence_gradients(hidden, logits, labels)
        else:
            residuals, features = sequence_means(hidden, logits, labels)
        losses = per_sample_losses(logits, labels)
        return Scores(residuals, features, losses, labels.ne(IGNORED_LABEL).sum(dim=1).to(losses.dtype))

    def _projections_for(self, hidden: Tensor, logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
        sizes = (logits.shape[-1], hidden.shape[-1], logits.device)
        if self._projections[0] != sizes:
            made = sketch_projections(*sizes[:2], dim=self.sketch_dim, seed=self.seed, device=sizes[2])
            self._projections = (sizes, made)
        return self._projections[1]


def _without_labels(model: Any, inputs: Mapping[str, Any], labels: Tensor) -> dict[str, Any]:
    """Inputs for logits alone: no loss, no cache of keys and values."""
    made = {name: value for name, value in inputs.items() if name not in _LABELS}
    base = base_model(model)
    config = getattr(base, "config", None)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in made:
        shifted = getattr(base, "prepare_decoder_input_ids_from_labels", None)
        if shifted is not None and labels.ndim == 2:
            made["decoder_input_ids"] = shifted(labels=labels)
    if getattr(config, "use_cache", False) and "use_cache" in inspect.signature(base.forward).parameters:
        made["use_cache"] = False
    return made


def _pooled(hidden: Tensor, output: Tensor, logits: Tensor) -> Tensor:
    """Rows `[B, d]` of a head's inputs `[B, T, d]`: whose outputs the model has picked (the last token's, mostly)."""
    same = (output.to(logits.dtype) == logits.unsqueeze(1)).all(dim=-1)
    if not bool(same.any(dim=1).all()):
        raise ValueError(
            "divbs_head_module: found a layer whose outputs are not the logits, allowed is the layer that makes them"
        )
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    place = positions.where(same, -1).amax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), place]


def _of_samples(hidden: Tensor, logits: Tensor, labels: Tensor, problem_type: str | None) -> Scores:
    counts = torch.ones(len(logits), device=logits.device)
    if logits.shape[-1] == 1 or problem_type == "regression":
        labels = labels.reshape(logits.shape).to(logits.dtype)
        residuals = logit_residuals(logits, labels, problem="regression")
        losses = per_sample_losses(logits, labels, regression=True)
    elif labels.is_floating_point():
        residuals = logit_residuals(logits, labels, problem="multi_label")
        losses = per_sample_losses(logits, labels)
    else:
        labels = labels.reshape(len(logits))
        residuals, losses = logit_residuals(logits, labels), per_sample_losses(logits, labels)
        counts = labels.ne(IGNORED_LABEL).float()
    return Scores(residuals, hidden.float(), losses, counts)
