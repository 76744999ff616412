"""MoLA's layers next to PEFT's LoRA of rank r: by task the cost of one LoRA, however many experts there are."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from hf_ext.adapters import MoLAConfig
from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step

BARE, LORA = "bare layers", "LoRA, rank r"
ONE_LORA = "rank r for every sample"  # the work of LoRA, and of MoLA-Grad with any number of experts
LINEARS, CONVS = ["qkv", "proj", "fc1", "fc2"], ["conv1", "conv2"]

Make = Callable[[bool], tuple[nn.Module, Tensor]]  # layers and their input, small if quick


class Block(nn.Module):
    """The four linear layers of a transformer block of width d, without what lies between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(self.qkv(x)[..., : x.shape[-1]])
        return x + self.fc2(self.fc1(x))


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions of a residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


def stepping(
    block: Make,
    adapt: Callable[[nn.Module, Tensor], nn.Module],
    *,
    experts: int | None = None,
    dtype: torch.dtype = torch.float32,
    compile_mode: str | None = None,
) -> Callable[[torch.device, bool], Step]:
    """Forward and backward of an adapted block of layers.

    Args:
        block: makes the layers and their input.
        adapt: adapts the layers, given a task id per sample.
        experts: the model takes the ids of as many tasks, one after the other; None: it takes none.
        dtype: of everything.
        compile_mode: of `torch.compile`, without code generation on the CPU; None: not compiled.
    """

    def make(device: torch.device, quick: bool) -> Step:
        with device:  # large layers take long to fill elsewhere
            layers, x = block(quick)
        task_ids = (torch.arange(len(x)) % (experts or 4)).to(device)
        model = adapt(layers.requires_grad_(False), task_ids).to(device, dtype)
        if compile_mode is not None:
            generated: dict[str, Any] = {"mode": compile_mode} if device.type == "cuda" else {"backend": "aot_eager"}
            model.compile(**generated)
        x = x.to(dtype).requires_grad_()
        gradient = torch.randn_like(x)
        options = {"mola_task_ids": task_ids} if experts else {}
        leaves = [x, *(each for each in model.parameters() if each.requires_grad)]

        def step() -> None:
            for leaf in leaves:
                leaf.grad = None
            model(x, **options).backward(gradient)

        return step

    return make


def adapter(config: Callable[[], PeftConfig]) -> Callable[[nn.Module, Tensor], nn.Module]:
    """What adapts layers by a configuration, whatever the ids."""
    return lambda model, _: get_peft_model(model, config())


def lora(rank: int, targets: str | list[str], **options: Any) -> LoraConfig:
    """PEFT's LoRA, of a scale of 2."""
    return LoraConfig(target_modules=targets, r=rank, lora_alpha=2 * rank, **options)


def mola(experts: int, rank: int, targets: str | list[str], **options: Any) -> MoLAConfig:
    """MoLA, of a scale of 2."""
    return MoLAConfig(target_modules=targets, num_experts=experts, r=rank, lora_alpha=2 * rank, **options)


def linear(batch: int, tokens: int, width: int) -> Make:
    """Linear layers of a transformer block."""
    return lambda quick: (
        (Block(16), torch.randn(4, 8, 16)) if quick else (Block(width), torch.randn(batch, tokens, width))
    )


def convolutions(batch: int, channels: int, pixels: int) -> Make:
    """Convolutions of a residual block."""
    return lambda quick: (
        (ConvBlock(8), torch.randn(4, 8, 8, 8))
        if quick
        else (ConvBlock(channels), torch.randn(batch, channels, pixels, pixels))
    )


def _by_experts(
    name: str,
    title: str,
    setting: str,
    block: Make,
    targets: list[str],
    *,
    rank: int = 8,
    experts: tuple[int, ...] = (4, 16, 64),
    devices: tuple[str, ...] = ("cpu", "cuda"),
    **options: Any,
) -> Benchmark:
    """MoLA-Grad of several numbers of experts next to a LoRA of the same rank."""
    ours = {count: f"MoLA-Grad, E={count}" for count in experts}
    return Benchmark(
        name=name,
        title=title,
        setting=f"{setting}, r={rank}, mixed tasks in the batch, forward and backward",
        contenders=(
            Contender(BARE, stepping(block, lambda model, _: model, **options)),
            Contender(LORA, stepping(block, adapter(partial(lora, rank, targets)), **options), work=ONE_LORA),
            *(
                Contender(
                    ours[count],
                    stepping(block, adapter(partial(mola, count, rank, targets)), experts=count, **options),
                    is_method=True,
                    work=ONE_LORA,
                )
                for count in experts
            ),
        ),
        reference=LORA,
        bars=tuple(Bar(subject, LORA, 1.05) for subject in ours.values()),
        devices=devices,
    )


_SMALL, _WIDE = linear(32, 197, 192), linear(4, 1024, 4096)
_ON_GPU: dict[str, Any] = {"rank": 16, "experts": (8, 64), "devices": ("cuda",)}

BY_EXPERTS = (
    _by_experts("mola-experts", "Linear layers, any number of experts", "32 x 197 x 192", _SMALL, LINEARS),
    _by_experts(
        "mola-experts-convolutions",
        "3 x 3 convolutions, any number of experts",
        "32 x 64 x 28 x 28",
        convolutions(32, 64, 28),
        CONVS,
    ),
    # sizes that compute rather than launch
    _by_experts(
        "mola-experts-vit-b",
        "Linear layers as wide as ViT-B's",
        "64 x 197 x 768, bfloat16",
        linear(64, 197, 768),
        LINEARS,
        dtype=torch.bfloat16,
        **_ON_GPU,
    ),
    _by_experts(
        "mola-experts-wide",
        "Wide linear layers",
        "4 x 1024 x 4096, bfloat16",
        _WIDE,
        LINEARS,
        dtype=torch.bfloat16,
        **_ON_GPU,
    ),
    # last, since they take the longest to start
    _by_experts(
        "mola-experts-wide-compiled",
        "Wide linear layers, compiled",
        "4 x 1024 x 4096, bfloat16, torch.compile",
        _WIDE,
        LINEARS,
        dtype=torch.bfloat16,
        compile_mode="default",
        **_ON_GPU,
    ),
    _by_experts(
        "mola-experts-graphs",
        "Linear layers, compiled, as CUDA graphs",
        "32 x 197 x 192, torch.compile(mode='reduce-overhead')",
        _SMALL,
        LINEARS,
        experts=(4, 64),
        devices=("cuda",),
        compile_mode="reduce-overhead",
    ),
)
