"""An update of a Trainer, or a prediction, as a step to be timed."""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from hf_ext._runs import quiet
from hf_ext.benchmarks.engine import Step


def vit(quick: bool, **config: Any) -> ViTForImageClassification:
    """A ViT of 5 million weights for 64 x 64 pixels, or a tiny one."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    if not quick:
        sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
    return ViTForImageClassification(ViTConfig(image_size=64, patch_size=8, **{**sizes, **config}))


def images(rows: int, *, classes: int = 2, groups: int = 4) -> dict[str, torch.Tensor]:
    """Random images with labels and domains, as a batch."""
    return {
        "pixel_values": torch.randn(rows, 3, 64, 64),
        "labels": torch.arange(rows) % classes,
        "domain_ids": torch.arange(rows) % groups,
    }


def update(
    trainer: type[Trainer],
    arguments: type[TrainingArguments],
    model: nn.Module,
    batches: Sequence[dict[str, Any]],
    device: torch.device,
    *,
    updates: int = 1,
    trainer_options: dict[str, Any] | None = None,
    **options: Any,
) -> Step:
    """Updates of a Trainer's loop, without the loading of data: all micro-batches, clipping, the optimizer."""
    args = arguments(
        output_dir=tempfile.gettempdir(),
        use_cpu=device.type == "cpu",
        gradient_accumulation_steps=len(batches),
        report_to="none",
        max_steps=10**6,
        **options,
    )
    made = quiet(trainer(model=model, args=args, **(trainer_options or {})))
    made.create_optimizer()
    wrapped, optimizer = made.accelerator.prepare(made.model, made.optimizer)
    made.optimizer = optimizer
    made.state.max_steps = args.max_steps  # for schedules; training would set it

    def step() -> None:
        for made.state.global_step in range(updates):
            samples, num_items = made.get_batch_samples(iter(batches), len(batches), device)
            made.current_gradient_accumulation_steps = len(samples)
            for inputs in samples:
                made.training_step(wrapped, inputs, num_items)
            made._clip_grad_norm(wrapped)
            optimizer.step()
            wrapped.zero_grad()

    return step


def inference(model: Any, inputs: torch.Tensor, device: torch.device) -> Step:
    """Logits of a batch, such as of images."""
    model.to(device).eval().requires_grad_(False)  # or torch's FLOP counter looks for gradients that are not there
    placed = inputs.to(device)

    @torch.inference_mode()
    def step() -> Any:
        return model(placed).logits

    return step
