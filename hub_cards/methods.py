"""The one registry of methods, read by cards, README and command line."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A picture of a method's own on its cards, such as MoLA's routing table.

    Args:
        file: name in the card's folder.
        caption: what it shows.
        fact: the key of `MethodCard.facts` whose value is drawn; without that fact there is no picture.
        draw: called with that value and the path to write.
    """

    file: str
    caption: str
    fact: str
    draw: Callable[[Any, str], None]


#: how a model or an adapter loads that no method of ours has given a form of its own, by library
USAGES = {
    "transformers": """from transformers import {auto_class}

model = {auto_class}.from_pretrained({place}).eval()
""",
    "peft": """from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained({base})
model = PeftModel.from_pretrained(base, {place}).eval()
""",
}


@dataclass(frozen=True)
class Method:
    """A method as its users read of it, and the modules of its commands.

    Args:
        name: lower case, as on the command line.
        title: short name.
        summary: what a user gets, in one line.
        description: first lines of every card.
        equation: what it computes, in words and one formula (markdown).
        paper: address of the paper.
        bibtex: citation.
        tags: of the model on the Hub.
        limitations: what to know before relying on it (markdown).
        usage: Python code that loads what is named after the method, with `{auto_class}`, `{place}` and, for what goes
            onto a base model, `{base}`. Empty for a way to train, whose models load as ever (`USAGES`).
        settings: picks those of a configuration's values that a card shows; by default all of an adapter's that say
            something, and none of a model's.
        pictures: drawn into every card's folder.
        commands: name of the module of its `train(argv)` and `demo(out, ...)`, for `hf-ext train` and `hf-ext demo`.
        studies: name of the module of its `STUDIES`, for `hf-ext reproduce`.
        benchmarks: name of the module of its `BENCHMARKS`, for `hf-ext bench`.
    """

    name: str
    title: str
    summary: str
    description: str
    equation: str
    paper: str
    bibtex: str
    tags: tuple[str, ...]
    limitations: str
    usage: str = ""
    settings: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    pictures: tuple[Picture, ...] = ()
    commands: str | None = None
    studies: str | None = None
    benchmarks: str | None = None


def usage_of(
    usage: str,
    auto_class: str,
    place: str,
    base_model: str | None,
    base_options: Mapping[str, Any],
    base_folder: str | None,
) -> str:
    """The code that loads what lies at `place`, whatever characters are in the names.

    Empty if it goes onto a base model of which neither the Hub id nor the folder within `place` is known.
    """
    base = None
    if base_model:
        base = ", ".join([_quoted(base_model), *(f"{name}={value!r}" for name, value in base_options.items())])
    if base is None and base_folder:
        # where the adapter's own configuration is looked for too, in place of the folder above that has one
        subfolder = _quoted(base_folder)
        base = f'{_quoted(place)}, subfolder={subfolder}, adapter_kwargs={{"subfolder": {subfolder}}}'
    if base is None and "{base}" in usage:
        return ""
    return usage.format(auto_class=auto_class, place=_quoted(place), base=base)


def _quoted(name: str) -> str:
    """A Python literal, in double quotes where that takes no thought."""
    return f'"{name}"' if re.fullmatch(r"[\w./-]*", name) else repr(name)


def _mola_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ["num_experts", "r", "lora_alpha", "routing", "target_modules", "modules_to_save", "task_heads"]
    names += ["train_backbone", "conv_form", "lora_dropout", "use_rslora"]
    if config.get("routing") == "router":
        names += ["router_kind", "twd_weight", "twd_temperature"]
    always = {"r", "num_experts", "twd_weight"}
    return {name: config[name] for name in names if name in config and (config[name] or name in always)}


def _draw_routing(table: Any, path: str) -> None:
    from hf_ext.hub_cards.plots import plot_routing

    plot_routing(table["weights"], path, table["tasks"])


_MOLA = Method(
    name="mola",
    title="MoLA",
    summary="a PEFT adapter type: a mixture of low-rank adapters, picked by task id or by a learned router",
    description=(
        "MoLA, mixture of low-rank adapters for heterogeneous data (Zhou et al., ICML 2024). It is not the MoLA of "
        "Gao et al., which allocates LoRA experts to the layers of a language model."
    ),
    equation=(
        "Every adapted layer keeps its weight W and gets E low-rank adapters, of which sample b uses a mixture:\n\n"
        "`y_b = W x_b + s * sum_e w_be B_e A_e x_b`\n\n"
        "With task routing (MoLA-Grad) w_b picks the adapter of the sample's task, so that the tasks' gradients do "
        "not meet in one adapter. With a router (MoLA-Router) a small network makes w_b from the input, the same for "
        "all layers, and the task-wise decorrelation (TwD) loss pulls the routing of one task together and that of "
        "different tasks apart."
    ),
    paper="https://arxiv.org/abs/2406.09679",
    bibtex="""@inproceedings{zhou2024mola,
  title     = {Exploring Training on Heterogeneous Data with Mixture of Low-rank Adapters},
  author    = {Zhou, Yuhang and Zhao, Zihua and Li, Haolin and Du, Siyuan and Yao, Jiangchao and Zhang, Ya and
               Wang, Yanfeng},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024},
  note      = {arXiv:2406.09679}
}""",
    tags=("hf_ext", "mola", "peft", "mixture-of-low-rank-adapters", "multi-task"),
    limitations=(
        "A mixture with task routing needs the task of every sample, at inference too. A router can only tell tasks "
        "apart that differ in their inputs. There is no single merged weight for all tasks; one task at a time can be "
        "merged or exported."
    ),
    usage=f"""import hf_ext  # tells peft what MoLA is
{USAGES["peft"]}# with task routing every call names the samples' tasks: model(..., mola_task_ids=task_ids)
""",
    settings=_mola_settings,
    pictures=(
        Picture(
            file="routing.png",
            caption="Mean routing weight of every expert (columns) for every task (rows)",
            fact="routing_table",
            draw=_draw_routing,
        ),
    ),
    commands="hf_ext.commands.mola",
    studies="hf_ext.studies.mola",
    benchmarks="hf_ext.benchmarks.mola",
)

_DISAM = Method(
    name="disam",
    title="DISAM",
    summary="a Trainer for models that meet unseen domains: sharpness-aware minimisation that heeds the domains",
    description=(
        "DISAM, domain-inspired sharpness-aware minimization (Zhang et al., ICLR 2024), trains on several domains for "
        "a model that generalises to unseen ones."
    ),
    equation=(
        "Every step perturbs the weights w to where the training loss rises, and takes the gradient there:\n\n"
        "`eps = rho g / ||g||`, `g = grad(L_avg - lambda Var_m(L_m))`, `w <- w - lr grad L_avg(w + eps)`\n\n"
        "L_m is the mean loss of domain m. Without the variance this is SAM, in which the domain that has converged "
        "least has the largest gradient and owns the perturbation; with it, domains above the average push less and "
        "those below it more."
    ),
    paper="https://arxiv.org/abs/2405.18861",
    bibtex="""@inproceedings{zhang2024disam,
  title     = {Domain-Inspired Sharpness-Aware Minimization Under Domain Shifts},
  author    = {Zhang, Ruipeng and Fan, Ziqing and Yao, Jiangchao and Zhang, Ya and Wang, Yanfeng},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2024},
  note      = {arXiv:2405.18861}
}""",
    tags=("hf_ext", "disam", "domain-generalization", "sharpness-aware-minimization"),
    limitations=(
        "Training costs two passes per update. What it gains depends on domains that converge unevenly; accuracy on "
        "the training domains says little about unseen ones."
    ),
    commands="hf_ext.commands.disam",
    studies="hf_ext.studies.disam",
    benchmarks="hf_ext.benchmarks.disam",
)

_DIVBS = Method(
    name="divbs",
    title="DivBS",
    summary="a Trainer that trains on the part of every batch that represents it best, for a fraction of the work",
    description=(
        "DivBS, diversified batch selection (Hong et al., ICML 2024): every step draws a large batch of candidates "
        "and trains on the small part of it that stands for the whole."
    ),
    equation=(
        "A forward pass without gradients gives every candidate's last-layer gradient `g_i`, the outer product of its "
        "error at the logits and the last layer's input. Candidates are picked one by one, the next one being that "
        "whose gradient, less its projection on those picked before, has the largest inner product with the mean "
        "gradient of all candidates:\n\n"
        "`pick = argmax_i |<g_i - P g_i, mean_j g_j>|`, P the projection on the gradients picked so far\n\n"
        "A second copy of a sample adds no direction and is not picked. The update is the ordinary one, with the mean "
        "loss of the picked samples."
    ),
    paper="https://arxiv.org/abs/2406.04872",
    bibtex="""@inproceedings{hong2024diversified,
  title     = {Diversified Batch Selection for Training Acceleration},
  author    = {Hong, Feng and Lyu, Yueming and Yao, Jiangchao and Zhang, Ya and Tsang, Ivor and Wang, Yanfeng},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024},
  note      = {arXiv:2406.04872}
}""",
    tags=("hf_ext", "divbs", "batch-selection", "efficient-training"),
    limitations=(
        "Every candidate costs a forward pass: time is saved if few are kept, and three times is the most. Samples "
        "are told apart by their last layer's gradients alone. On clean and easy data, taking the largest losses can "
        "do as well."
    ),
    commands="hf_ext.commands.divbs",
    studies="hf_ext.studies.divbs",
    benchmarks="hf_ext.benchmarks.divbs",
)


def _draw_gravity(found: Any, path: str) -> None:
    from hf_ext.hub_cards.plots import plot_gravity

    plot_gravity(found, path)


_TARF = Method(
    name="tarf",
    title="TARF",
    summary="machine unlearning of a concept, also where it does not coincide with the labels or the data at hand",
    description=(
        "TARF, target-aware forgetting (Zhu et al., ICLR 2026): a model from which a concept has been removed without "
        "training it anew, by an annealed ascent on the data to forget while the remaining data are trained on."
    ),
    equation=(
        "Every update lowers the loss l on the remaining data D_un and raises it on the data to forget D_f:\n\n"
        "`L(t) = -k(t) * mean over D_f of l + 1/|D_un| * sum over D_un of tau * l`\n\n"
        "`k(t) = max(k (T - t - t0) / T, 0)` falls to zero. Before t1 there is only the ascent. It carries along "
        "remaining data that belong to the concept: those whose loss has changed most by t1 (the representation "
        "gravity `|l_original - l_t1|`) are left out from then on (`tau = 0`). At the end, with `k(t) = 0`, training "
        "goes on with the retained data alone, towards the model that one would get by training without the concept."
    ),
    paper="https://arxiv.org/abs/2406.08288",
    bibtex="""@inproceedings{zhu2026decoupling,
  title     = {Decoupling the Class Label and the Target Concept in Machine Unlearning},
  author    = {Zhu, Jianing and Han, Bo and Yao, Jiangchao and Xu, Jianliang and Niu, Gang and Sugiyama, Masashi},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2026},
  note      = {arXiv:2406.08288}
}""",
    tags=("hf_ext", "tarf", "machine-unlearning"),
    limitations=(
        "Approximate unlearning gives no guarantee: that accuracy on the forgotten data is low, or that an attack "
        "takes them for data never trained on, does not prove that nothing can be recovered. What was not handed in "
        "is only left out of further training if it was identified, and leaving out is not forgetting. Compare with a "
        "model trained anew without the concept wherever that is possible. The equations are the paper's; the "
        "authors' code and their settings were not available."
    ),
    pictures=(
        Picture(
            file="gravity.png",
            caption="How far the ascent carried the remaining data along, by group; the marked ones were left out",
            fact="identified",
            draw=_draw_gravity,
        ),
    ),
    commands="hf_ext.commands.tarf",
    studies="hf_ext.studies.tarf",
    benchmarks="hf_ext.benchmarks.tarf",
)

#: the methods by name
METHODS: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Make a method known to cards and commands.

    Raises:
        ValueError: another method has that name.
    """
    if METHODS.setdefault(method.name, method) is not method:
        raise ValueError(f"name: found {method.name!r}, which is taken, allowed is one that is not in METHODS")
    return method


for _method in (_MOLA, _DISAM, _DIVBS, _TARF):
    register_method(_method)
