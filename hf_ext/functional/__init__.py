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
from hf_ext.functional.divbs import (
    DivBSInfo,
    divbs_select,
    divbs_select_gram,
    divbs_select_with_info,
    gradient_norms,
    logit_residuals,
    sequence_gradients,
    sequence_means,
    sequence_sketch,
    sketch_projections,
)
from hf_ext.functional.mola import (
    combine_task_losses,
    lora_mixture_conv2d,
    lora_mixture_linear,
    router_routing,
    task_routing,
    twd_loss,
)
from hf_ext.functional.tarf import (
    annealed_ascent_weight,
    confidence_attack,
    gravity_by_label,
    gravity_threshold,
    npo_loss,
    representation_gravity,
    retain_mask,
    retain_mask_by_label,
    saliency_masks,
    tarf_loss,
    tarf_phase,
    unlearning_gap,
)

__all__ = [
    "DivBSInfo",
    "annealed_ascent_weight",
    "combine_task_losses",
    "confidence_attack",
    "disam_ascent_loss",
    "disam_sample_weights",
    "divbs_select",
    "divbs_select_gram",
    "divbs_select_with_info",
    "domain_mean_losses",
    "domain_sums",
    "domain_variance_weights",
    "gradient_norms",
    "gravity_by_label",
    "gravity_threshold",
    "logit_residuals",
    "lora_mixture_conv2d",
    "lora_mixture_linear",
    "npo_loss",
    "representation_gravity",
    "retain_mask",
    "retain_mask_by_label",
    "router_routing",
    "saliency_masks",
    "sam_perturbation",
    "sequence_gradients",
    "sequence_means",
    "sequence_sketch",
    "sketch_projections",
    "tarf_loss",
    "tarf_phase",
    "task_routing",
    "twd_loss",
    "unlearning_gap",
]
