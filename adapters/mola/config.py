"""The configuration of a MoLA adapter (`adapter_config.json`)."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from peft import PeftConfig
from torch import nn

from hf_ext._arguments import Bounds, Count, NonNegative, Positive, check_fields, check_value
from hf_ext.adapters._register import HfExtPeftType
from hf_ext.adapters.mola.patterns import check_patterns

#: what `router` says in adapter_config.json when the router was a module of the user's own
CUSTOM_ROUTER = "custom"

_Index = Annotated[int, Bounds(at_least=0)]
_JSON_VALUES = (
    *("num_experts", "r", "lora_alpha", "lora_dropout", "twd_weight", "twd_temperature", "twd_dim", "num_tasks"),
    *("rank_pattern", "alpha_pattern", "train_backbone", "use_rslora", "init_weights"),
)


def _check(name: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}: found {value!r}, allowed is {allowed}")


def _plain(value: Any) -> Any:
    """A number, or numbers, as JSON knows them, which has none of numpy."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | range):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _check_names(name: str, value: Any, *, pattern: bool) -> None:
    if pattern and isinstance(value, str):
        return  # see check_patterns
    names = value is None or (isinstance(value, list | set | tuple) and all(isinstance(item, str) for item in value))
    _check(
        name, value, names, "a list of names, a regular expression or None" if pattern else "a list of names or None"
    )


@dataclass
class MoLAConfig(PeftConfig):
    """Mixture of low-rank adapters for heterogeneous data (MoLA of Zhou et al., ICML 2024, arXiv:2406.09679).

    Not to be confused with the MoLA of Gao et al. (LoRA experts allocated to the layers of an LLM).

    "Expert" is one of the E low-rank updates of a layer, "adapter" all that a configuration adds to a base model.

    Args:
        target_modules: names (or one regular expression) of the linear and 2-d convolution layers to adapt, or
            `"all-linear"`, as in PEFT.
        num_experts: E, the number of experts in each adapted layer. With `routing="task"` one per task.
        r: rank of every expert.
        lora_alpha: updates are scaled by `lora_alpha / r`.
        routing: `"task"` (MoLA-Grad): the expert of the sample's task, given as `mola_task_ids`; `"router"`
            (MoLA-Router): routing weights predicted by a small network from the model's input, no ids needed at
            inference.
        conv_form: low-rank form of k x k convolutions, `"factored"` (as PEFT's LoRA, cheap) or `"loralib"` (the
            authors'; costs a kernel per sample).
        router: `None` (by the model's input: image or text), `"image"`, `"image-full"` (no down-sampling), `"text"`, a
            name given to `register_router`, or a module that maps the model's main input to `[B, E]` logits.
        router_norm: of an image router, `"batch"` (the authors': in training a sample's weights depend on the others
            of its process's batch, so that N processes are not like one) or `"layer"` (on every sample alone).
        router_kind: `"soft"` (softmax) or `"hard"` (one-hot with a straight-through gradient).
        twd_weight: coefficient of the TwD loss that `MoLATrainer` adds; 0 leaves out its projection too.
        twd_temperature: tau of the TwD loss.
        twd_dim: width of the projection that the TwD loss is computed on.
        train_backbone: train the base model too, as the paper does. The adapter's file then holds it as well.
        task_heads: names of linear layers (the classifier, usually) of which every task gets a trained copy, picked by
            `mola_task_ids` with either routing.
        num_tasks: how many copies `task_heads` makes; `None` means `num_experts`.
        lora_dropout: dropout probability on the experts' input.
        use_rslora: scale by `lora_alpha / sqrt(r)`.
        rank_pattern, alpha_pattern: exceptions from `r` and `lora_alpha` by layer name, as in `LoraConfig`.
        bias: `"none"`, `"all"` or `"mola_only"`: which biases of the base model are trained and saved.
        modules_to_save: further modules that are trained and saved in full.
        exclude_modules, layers_to_transform, layers_pattern: as in `LoraConfig`.
        init_weights: `True`: every B starts at zero, so that the model starts as the base model; `False`: random.

    Raises:
        ValueError: names the argument, what was found and what is allowed.
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None,
        metadata={
            "help": "Names of the linear and convolution layers to adapt, or 'all-linear', which `hf-ext "
            "train` takes by default."
        },
    )
    # required, but a field without default cannot follow those of PeftConfig
    num_experts: Count = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Number of low-rank experts in every adapted layer (required, but `hf-ext train` counts the "
            "tasks); one per task with routing='task'."
        },
    )
    r: Count = field(default=8, metadata={"help": "Rank of every expert."})
    lora_alpha: NonNegative = field(
        default=16, metadata={"help": "The experts' updates are scaled by lora_alpha / r."}
    )
    routing: Literal["task", "router"] = field(
        default="task",
        metadata={
            "help": "How experts are mixed: 'task', the one of the sample's task id; 'router', by routing "
            "weights that a small network predicts from the model's input."
        },
    )
    conv_form: Literal["factored", "loralib"] = field(
        default="factored",
        metadata={
            "help": "Low-rank form of convolutions: 'factored' as in PEFT's LoRA, 'loralib' as in the "
            "authors' code (costs a kernel per sample)."
        },
    )
    router: str | nn.Module | None = field(
        default=None,
        metadata={
            "help": "Router network: 'image', 'image-full' (no down-sampling), 'text' or a registered name; "
            "by default the one for the model's input."
        },
    )
    router_norm: Literal["batch", "layer"] = field(
        default="batch",
        metadata={
            "help": "Normalisation in an image router: 'batch' as in the authors' code, over a process's batch; "
            "'layer' over every image alone, which makes N processes equal to one."
        },
    )
    router_kind: Literal["soft", "hard"] = field(
        default="soft",
        metadata={
            "help": "Routing weights of the router: 'soft' by softmax, 'hard' one-hot (straight-through gradient)."
        },
    )
    twd_weight: NonNegative = field(
        default=0.1,
        metadata={"help": "Coefficient of the task-wise decorrelation (TwD) loss, with routing='router'; 0 for none."},
    )
    twd_temperature: Positive = field(default=1.0, metadata={"help": "Temperature of the TwD loss."})
    twd_dim: Count = field(
        default=32, metadata={"help": "Width of the projection of router logits that the TwD loss is computed on."}
    )
    train_backbone: bool = field(
        default=False, metadata={"help": "Train the base model too, and save it with the adapter."}
    )
    task_heads: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of linear layers, usually the classifier, of which every task gets a trained "
            "copy; by default none."
        },
    )
    num_tasks: Count | None = field(
        default=None, metadata={"help": "Number of copies that task_heads makes; by default num_experts."}
    )
    lora_dropout: Annotated[float, Bounds(at_least=0, below=1)] = field(
        default=0.0, metadata={"help": "Dropout probability on the experts' input."}
    )
    use_rslora: bool = field(
        default=False, metadata={"help": "Scale the experts' updates by lora_alpha / sqrt(r) instead."}
    )
    rank_pattern: dict[str, Count] | None = field(
        default_factory=dict, metadata={"help": "Ranks that differ from r, by layer name."}
    )
    alpha_pattern: dict[str, NonNegative] | None = field(
        default_factory=dict, metadata={"help": "Values that differ from lora_alpha, by layer name."}
    )
    bias: Literal["none", "all", "mola_only"] = field(
        default="none",
        metadata={
            "help": "Biases of the base model that are trained: 'none', 'all', or those of adapted layers "
            "('mola_only')."
        },
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Names of further modules to train and save in full; by default none."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names of layers (or a regular expression) not to adapt; by default none."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the blocks to adapt; by default all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={"help": "Name of the list of blocks that layers_to_transform indexes; by default any list."},
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Start as the base model (every B = 0), not from random updates."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = HfExtPeftType.MOLA
        for name in ("target_modules", "exclude_modules"):
            if isinstance(names := getattr(self, name), list):
                setattr(self, name, set(names))
        self.rank_pattern = self.rank_pattern or {}
        self.alpha_pattern = self.alpha_pattern or {}
        self._check_values()

    def _check_values(self) -> None:
        check_fields(self, MoLAConfig)
        for name in _JSON_VALUES:
            setattr(self, name, _plain(getattr(self, name)))
        _check("router", self.router, isinstance(self.router, str | nn.Module | None), "a name, a module or None")
        for name in ("target_modules", "exclude_modules"):
            _check_names(name, getattr(self, name), pattern=True)
        for name in ("modules_to_save", "task_heads"):
            _check_names(name, getattr(self, name), pattern=False)
        check_patterns(self)
        if self.routing == "task" and self.task_heads and self.num_tasks is not None:
            fits = self.num_tasks <= self.num_experts
            _check("num_tasks", self.num_tasks, fits, f"at most num_experts={self.num_experts} with routing='task'")
        self._check_layers()
        for name in ("layers_to_transform", "layers_pattern"):
            regular_expression = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
            value = getattr(self, name)
            _check(name, value, not (regular_expression and value is not None), "None with a regular expression")

    def _check_layers(self) -> None:
        if (layers := self.layers_to_transform) is not None:
            for index in layers if isinstance(layers, list | tuple | set | range) else [layers]:
                check_value("layers_to_transform", index, _Index)
            self.layers_to_transform = _plain(layers)

    @property
    def uses_twd(self) -> bool:
        """Whether training adds the TwD loss."""
        return self.routing == "router" and self.twd_weight > 0

    @property
    def needs_task_ids(self) -> bool:
        """Whether a forward needs `mola_task_ids`."""
        return self.routing == "task" or bool(self.task_heads)

    @property
    def task_id_bound(self) -> int:
        """Ids are in `[0, task_id_bound)` where they pick an adapter or a head."""
        heads = self.num_tasks or self.num_experts
        if self.routing == "task":
            return min(self.num_experts, heads) if self.task_heads else self.num_experts
        return heads

    def to_dict(self) -> dict[str, Any]:
        """As written to adapter_config.json; a router module is named, never serialised."""
        router, self.router = self.router, CUSTOM_ROUTER if isinstance(self.router, nn.Module) else self.router
        try:
            written = super().to_dict()
        finally:
            self.router = router
        return {name: sorted(value) if isinstance(value, set) else value for name, value in written.items()}
