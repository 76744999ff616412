"""MoLA, as cards, README and command line know it."""

from collections.abc import Mapping
from typing import Any

from hf_ext.hub_cards.methods.method import USAGES, Method, Picture


def _mola_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ["num_experts", "r", "lora_alpha", "routing", "target_modules", "modules_to_save", "task_heads"]
    names += ["train_backbone", "conv_form", "lora_dropout", "use_rslora"]
    if config.get("routing") == "router":
        names += ["router_kind", "twd_weight", "twd_temperature"]
        names += ["router_norm"] * (config.get("router_norm") != "batch")
    always = {"r", "num_experts", "twd_weight"}
    return {name: config[name] for name in names if name in config and (config[name] or name in always)}


def _draw_routing(table: Any, path: str) -> None:
    from hf_ext.hub_cards.plots import plot_routing

    plot_routing(table["weights"], path, table["tasks"])


METHOD = Method(
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
)
