"""The papers' equations as pure functions on tensors. This package imports torch and nothing else.

One file per method. Every function computes in at least float32 and differentiates where its method does.
"""

from hf_ext.functional.disam import (
    disam_ascent_loss,
    disam_sample_weights,
    domain_mean_losses,
    domain_sums,
    domain_variance_weights,
    sam_perturbation,
)
from hf_ext.functional.mola import (
    combine_task_losses,
    lora_mixture_conv2d,
    lora_mixture_linear,
    router_routing,
    task_routing,
    twd_loss,
)

__all__ = [
    "combine_task_losses",
    "disam_ascent_loss",
    "disam_sample_weights",
    "domain_mean_losses",
    "domain_sums",
    "domain_variance_weights",
    "lora_mixture_conv2d",
    "lora_mixture_linear",
    "router_routing",
    "sam_perturbation",
    "task_routing",
    "twd_loss",
]
