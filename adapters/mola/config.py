"""The configuration of a MoLA adapter (`adapter_config.json`)."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig
from torch import nn

from hf_ext.adapters._register import HfExtPeftType

#: what `router` says in adapter_config.json when the router was a module of the user's own
CUSTOM_ROUTER = "custom"


def _check(name: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}: found {value!r}, allowed is {allowed}")


def _is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value: Any, low: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= low


def _check_names(name: str, value: Any, *, pattern: bool) -> None:
    if pattern and isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            _check(name, value, False, f"a regular expression ({error})")
        return
    names = value is None or (isinstance(value, list | set | tuple) and all(isinstance(item, str) for item in value))
    _check(
        name, value, names, "a list of names, a regular expression or None" if pattern else "a list of names or None"
    )


@dataclass
class MoLAConfig(PeftConfig):
    """Mixture of low-rank adapters for heterogeneous data (MoLA of Zhou et al., ICML 2024, arXiv:2406.09679).

    Not to be confused with the MoLA of Gao et al. (LoRA experts allocated to the layers of an LLM).

    Args:
        target_modules: names (or one regular expression) of the linear and 2-d convolution layers to adapt, or
            `"all-linear"`, as in PEFT.
        num_experts: E, the number of low-rank adapters in each layer. With `routing="task"` one per task.
        r: rank of every adapter.
        lora_alpha: the update is scaled by `lora_alpha / r`.
        routing: `"task"` (MoLA-Grad): the adapter of the sample's task, given as `mola_task_ids`; `"router"`
            (MoLA-Router): weights made by a small network from the model's input, no ids needed at inference.
        conv_form: how a k x k convolution is updated, `"factored"` (as PEFT's LoRA, cheap) or `"loralib"` (the
            authors'; costs a kernel per sample).
        router: `None` (by the model's input: image or text), `"image"`, `"image-full"` (no down-sampling), `"text"`, a
            name given to `register_router`, or a module that maps the model's main input to `[B, E]` logits.
        router_kind: `"soft"` (softmax) or `"hard"` (one-hot with a straight-through gradient).
        twd_weight: weight of the TwD loss that `MoLATrainer` adds; 0 leaves out its projection too.
        twd_temperature: tau of the TwD loss.
        twd_dim: width of the projection the TwD loss works on.
        train_backbone: train the base model too, as the paper does. The adapter's file then holds its weights as well.
        task_heads: names of linear layers (the classifier, usually) of which every task gets a trained copy of its
            own, picked by `mola_task_ids` with either routing.
        num_tasks: how many copies `task_heads` makes; `None` means `num_experts`.
        lora_dropout: dropout on the adapters' input.
        use_rslora: scale by `lora_alpha / sqrt(r)`.
        rank_pattern, alpha_pattern: exceptions from `r` and `lora_alpha` by layer name, as in `LoraConfig`.
        bias: `"none"`, `"all"` or `"mola_only"`: which biases of the base model are trained and saved.
        modules_to_save: further modules that are trained and saved whole.
        exclude_modules, layers_to_transform, layers_pattern: as in `LoraConfig`.
        init_weights: `True`: every B starts at zero, so that the model starts as the base model; `False`: random.

    Raises:
        ValueError: names the argument, what was found and what is allowed.
    """

    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names (or a regular expression) of the layers to adapt, or 'all-linear'."}
    )
    num_experts: int | None = field(
        default=None, metadata={"help": "Low-rank adapters per layer; one per task with routing='task'."}
    )
    r: int = field(default=8, metadata={"help": "Rank of every adapter."})
    lora_alpha: float = field(default=16, metadata={"help": "The update is scaled by lora_alpha / r."})
    routing: Literal["task", "router"] = field(
        default="task", metadata={"help": "'task': adapter by task id. 'router': learned from the input."}
    )
    conv_form: Literal["factored", "loralib"] = field(
        default="factored", metadata={"help": "Form of the convolutions' updates: PEFT's or the authors'."}
    )
    router: str | nn.Module | None = field(
        default=None, metadata={"help": "'image', 'image-full', 'text', a registered name; default: by the input."}
    )
    router_kind: Literal["soft", "hard"] = field(
        default="soft", metadata={"help": "Softmax weights, or one-hot with a straight-through gradient."}
    )
    twd_weight: float = field(default=0.1, metadata={"help": "Weight of the TwD loss (routing='router')."})
    twd_temperature: float = field(default=1.0, metadata={"help": "Temperature of the TwD loss."})
    twd_dim: int = field(default=32, metadata={"help": "Width of the TwD projection."})
    train_backbone: bool = field(default=False, metadata={"help": "Train (and save) the base model too."})
    task_heads: list[str] | None = field(
        default=None, metadata={"help": "Linear layers of which every task gets a trained copy of its own."}
    )
    num_tasks: int | None = field(default=None, metadata={"help": "Copies made by task_heads; default: num_experts."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapters' input."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by lora_alpha / sqrt(r)."})
    rank_pattern: dict[str, int] | None = field(
        default_factory=dict, metadata={"help": "Ranks that differ from r, by layer name."}
    )
    alpha_pattern: dict[str, float] | None = field(
        default_factory=dict, metadata={"help": "Alphas that differ from lora_alpha, by layer name."}
    )
    bias: Literal["none", "all", "mola_only"] = field(
        default="none", metadata={"help": "Biases of the base model that are trained."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules that are trained and saved whole."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names (or a regular expression) of layers to leave out."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the blocks to adapt; default: all."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of blocks that layers_to_transform counts in."}
    )
    init_weights: bool = field(default=True, metadata={"help": "Start as the base model (B = 0)."})

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
        positive = "an integer >= 1"
        _check("num_experts", self.num_experts, _is_int(self.num_experts, 1), positive)
        _check("r", self.r, _is_int(self.r, 1), positive)
        _check("twd_dim", self.twd_dim, _is_int(self.twd_dim, 1), positive)
        _check(
            "num_tasks", self.num_tasks, self.num_tasks is None or _is_int(self.num_tasks, 1), f"None or {positive}"
        )
        for name, choices in {
            "routing": ("task", "router"),
            "conv_form": ("factored", "loralib"),
            "router_kind": ("soft", "hard"),
            "bias": ("none", "all", "mola_only"),
        }.items():
            _check(name, getattr(self, name), getattr(self, name) in choices, f"one of {', '.join(choices)}")
        for name in ("train_backbone", "use_rslora", "init_weights"):
            _check(name, getattr(self, name), isinstance(getattr(self, name), bool), "true or false")
        _check("lora_alpha", self.lora_alpha, _is_number(self.lora_alpha, 0), "a number >= 0")
        _check("twd_weight", self.twd_weight, _is_number(self.twd_weight, 0), "a number >= 0")
        temperature_ok = _is_number(self.twd_temperature, 0) and self.twd_temperature > 0
        _check("twd_temperature", self.twd_temperature, temperature_ok, "a number > 0")
        dropout_ok = _is_number(self.lora_dropout, 0) and self.lora_dropout < 1
        _check("lora_dropout", self.lora_dropout, dropout_ok, "a number in [0, 1)")
        _check("router", self.router, isinstance(self.router, str | nn.Module | None), "a name, a module or None")
        for name, ok, allowed in (
            ("rank_pattern", lambda value: _is_int(value, 1), f"names with {positive}"),
            ("alpha_pattern", lambda value: _is_number(value, 0), "names with a number >= 0"),
        ):
            values = getattr(self, name)
            _check(name, values, isinstance(values, dict) and all(map(ok, values.values())), allowed)
        for name in ("target_modules", "exclude_modules"):
            _check_names(name, getattr(self, name), pattern=True)
        for name in ("modules_to_save", "task_heads"):
            _check_names(name, getattr(self, name), pattern=False)
        if self.routing == "task" and self.task_heads and self.num_tasks is not None:
            fits = self.num_tasks <= (self.num_experts or 0)
            _check("num_tasks", self.num_tasks, fits, f"at most num_experts={self.num_experts} with routing='task'")
        for name in ("layers_to_transform", "layers_pattern"):
            regular_expression = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
            value = getattr(self, name)
            _check(name, value, not (regular_expression and value is not None), "None with a regular expression")

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
        assert self.num_experts is not None  # checked at construction
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
