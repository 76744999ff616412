"""Time of adapted linear layers, forward and backward, next to PEFT's LoRA: python examples/measure_mola.py

All variants take turns in one run; printed are medians of the ratio to the bare layers and to LoRA of rank E r.
"""

import argparse
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import hf_ext  # noqa: F401  (registers MOLA)
from hf_ext.adapters import MoLAConfig


class Block(nn.Module):
    """The four linear layers of a transformer block of width d, without what lies between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(self.qkv(x)[..., : x.shape[-1]])
        return x + self.fc2(self.fc1(x))


class MaskedLoop(nn.Module):
    """The obvious implementation: every expert on the whole batch, masked by its weight."""

    def __init__(self, base: nn.Linear, experts: int, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.ParameterList([nn.Parameter(torch.randn(rank, base.in_features) * 0.02) for _ in range(experts)])
        self.B = nn.ParameterList([nn.Parameter(torch.zeros(base.out_features, rank)) for _ in range(experts)])
        self.weights: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for expert, (A, B) in enumerate(zip(self.A, self.B, strict=True)):
            y = y + self.weights[:, expert, None, None] * ((x @ A.t()) @ B.t()) * 2.0
        return y


def _variants(args: argparse.Namespace, ids: Tensor, device: str) -> dict[str, tuple[nn.Module, dict]]:
    experts, rank = args.experts, args.rank
    names = ["qkv", "proj", "fc1", "fc2"]
    one_hot = nn.functional.one_hot(ids, experts).float()

    def mola() -> nn.Module:
        config = MoLAConfig(target_modules=names, num_experts=experts, r=rank)
        return get_peft_model(Block(args.width), config)

    def lora(r: int) -> nn.Module:
        return get_peft_model(Block(args.width), LoraConfig(target_modules=names, r=r, lora_alpha=2 * r))

    def loop() -> nn.Module:
        block = Block(args.width)
        for name in names:
            layer = MaskedLoop(getattr(block, name), experts, rank)
            layer.weights = one_hot.to(device)
            setattr(block, name, layer)
        return block

    built = {
        "bare layers": (Block(args.width).requires_grad_(False), {}),
        f"LoRA r={rank}": (lora(rank), {}),
        f"LoRA r={experts * rank}": (lora(experts * rank), {}),
        "MoLA": (mola(), {"mola_task_ids": ids}),
        "masked loop": (loop(), {}),
    }
    return {name: (model.to(device), kwargs) for name, (model, kwargs) in built.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=197)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = torch.randint(args.experts, (args.batch,))
    x = torch.randn(args.batch, args.tokens, args.width, device=device, requires_grad=True)
    grad = torch.randn_like(x)
    variants = _variants(args, ids, device)

    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(args.rounds + 2):
        for name, (model, kwargs) in variants.items():
            start = time.perf_counter()
            model(x, **kwargs).backward(grad)
            if device == "cuda":
                torch.cuda.synchronize()
            if round_ >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)

    print(
        f"{device}, {args.batch} x {args.tokens} x {args.width}, E={args.experts}, r={args.rank}, {args.rounds} rounds"
    )
    reference = f"LoRA r={args.experts * args.rank}"
    for name, measured in times.items():
        to_bare = statistics.median(a / b for a, b in zip(measured, times["bare layers"], strict=True))
        to_lora = statistics.median(a / b for a, b in zip(measured, times[reference], strict=True))
        median = 1e3 * statistics.median(measured)
        print(f"{name:12s} {median:8.1f} ms   {to_bare:5.2f} x bare layers   {to_lora:5.2f} x {reference}")


if __name__ == "__main__":
    main()
