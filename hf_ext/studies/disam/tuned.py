"""DISAM's study once more, on pictures and with a pretrained vision backbone that is fine-tuned, whole and by LoRA."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_ext._runs import freeze_statistics
from hf_ext.studies.backbones import LinearHead, as_seen_by, load_backbone, options_of
from hf_ext.studies.disam import study as disam
from hf_ext.studies.disam.data import Problem, open_problem
from hf_ext.studies.disam.study import DISAM, ERM, SAM, Setting, prepare
from hf_ext.studies.study import Case, Outcome, Run, Source, Study

STEPS, BATCH = 250, 32
RANK, SCALE = 8, 2  # of the adapters
WHOLE, LORA = "whole network", "LoRA"
#: of SAM and DISAM, that which is best for plain training; plain training has others to choose from
RATE = {WHOLE: 3e-4, LORA: 3e-3}
LOSS = 1.0  # updates to it are counted
LEFT_OUT = "sketch"


def check(left_out: str, name: str, data: DatasetDict) -> None:
    """Raises ValueError for anything but a table of pictures in domains, of which this one is left out."""
    disam.check(name, data)
    domains = data["train"].features["domain"].names
    if left_out not in domains:
        raise ValueError(f"--leave-out: found {left_out!r}, allowed are the domains of {name}, {', '.join(domains)}")


def run(run: Run) -> Outcome:
    """Train one system; the score is the accuracy on the domain that is left out."""
    problem, options = open_problem(run.folder), run.case.options
    setting = Setting(
        network=partial(network, options),
        inputs=lambda rows: as_seen_by(options, torch.from_numpy(rows)),
        steps=STEPS,
        batch=BATCH,
        learning_rate=options["learning_rate"],
    )
    return disam.leave_out(run, problem, [problem.domains.index(options["left_out"])], setting)


def network(options: Mapping[str, Any], problem: Problem) -> nn.Module:
    """The backbone with a new head, to be trained whole or, where the option `lora` is true, by adapters."""
    head = LinearHead(load_backbone(options), problem.classes)
    freeze_statistics(head)
    model: Any = get_peft_model(head, _adapters(head)) if options["lora"] else head
    trained: nn.Module = model.to(memory_format=torch.channels_last)  # a fifth less time for convolutions on a CPU
    return trained


def _adapters(model: LinearHead) -> LoraConfig:
    """In every linear layer and convolution of the backbone, but for those of groups; the head is trained whole."""
    names = [
        f"backbone.{name}"
        for name, layer in model.backbone.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    return LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=names, modules_to_save=["classifier"])


PROTOCOL = f"""
- **Backbone.** `BACKBONE`, a pretrained vision model, with a new linear head on its pooled features. *{WHOLE}*: all
  weights are trained, and perturbed. *{LORA}*: adapters of rank {RANK}, scaled by {SCALE}, in all its linear layers
  and convolutions, and the head; the rest is neither trained nor perturbed. The statistics of BatchNorms stay as they
  were given; their scale and shift, if it has any, are weights like others.
- **Pictures** as the model's processor makes them, nothing augmented.
- **One domain is left out**, `DOMAIN`: training rows of the others (the sources) are trained on, as they are, and all
  rows of this one are scored.
- **Systems**: as in the study `disam`; DISAM is told the domain of every training row, ERM and SAM are not, and none
  is told anything of the domain that is left out.
- **Budget.** {STEPS} updates of {BATCH} rows for every system, with the Trainer's AdamW (one learning rate for
  backbone and head, no weight decay, no clipping) and a cosine schedule without warm-up. An update of SAM or DISAM
  costs two passes; ERM is not given twice the updates. The last weights are judged.
- **Hyper-parameters**: four points each, by the validation accuracy of one run with another seed; the unseen domain
  chooses nothing. ERM has four learning rates, SAM four rhos, DISAM two of these rhos with two lambdas each, of which
  0.1 is the paper's. SAM and DISAM have the third of ERM's learning rates ({RATE[WHOLE]:g}, with LoRA {RATE[LORA]:g}).
- **Details**: as in the study `disam`, with updates to a loss of {LOSS:g}.
- A seed draws validation rows, the head, the adapters and batches. It is shared by all systems.
- **Left out**: other domains in turn, domains that converge unevenly, larger pictures, longer training, augmentation,
  a learning rate of its own for the head, the paper's five benchmarks.
""".strip()

_RATE_FACTORS, _LAMBDAS = (0.25, 0.5, 1.0, 2.0), (0.1, 1.0)
_RHOS = {WHOLE: (0.005, 0.01, 0.02, 0.05), LORA: (0.01, 0.02, 0.05, 0.1)}  # fewer weights share a perturbation there
_GRIDS: dict[str, Any] = {
    ERM: lambda case: {"learning_rate": tuple(RATE[case.name] * factor for factor in _RATE_FACTORS)},
    SAM: lambda case: {"rho": _RHOS[case.name]},
    DISAM: lambda case: {"rho": _RHOS[case.name][1:3], "lambda": _LAMBDAS},
}


def tuned(backbone: str, *, left_out: str = LEFT_OUT, trust_remote_code: bool = False) -> Study:
    """The study with this backbone.

    Args:
        backbone: a Hub id, or the folder of a model of transformers.
        left_out: name of the domain that is not trained on.
        trust_remote_code: whether code that comes with the backbone may run.
    """
    shared = {
        "regime": "even",
        "loss": LOSS,
        "left_out": left_out,
        **options_of(backbone, trust_remote_code=trust_remote_code),
    }
    return Study(
        name="disam-tuned",
        title="DISAM: fine-tuning a pretrained network",
        question=(
            "Does a pretrained network that is fine-tuned by DISAM do better on a domain it has not seen than one "
            "fine-tuned by SAM or plainly (ERM), whole or by LoRA?"
        ),
        metric=f"accuracy on the unseen domain, {left_out}",
        data={
            "pictures": Source(
                "pictures of several classes in several styles, such as PACS",
                needs="image (all of one size), label, domain (class labels), split (train, test; or these splits)",
                origin="PACS (Li et al., 2017); examples/README.md says how to make the table",
            )
        },
        cases=tuple(
            Case(name, "pictures", {**shared, "lora": name == LORA, "learning_rate": rate})
            for name, rate in RATE.items()
        ),
        systems=tuple(replace(system, grid=_GRIDS[system.name]) for system in disam.COMPARISON.systems),
        comparisons=disam.COMPARISON.comparisons,
        check=partial(check, left_out),
        prepare=prepare,
        run=run,
        protocol=PROTOCOL.replace("BACKBONE", Path(backbone).name).replace("DOMAIN", left_out),
        seeds=3,
        details=disam.COMPARISON.details,
    )
