"""What cards say of each method, in one table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A method as its users read of it.

    Args:
        name: lower case, as on the command line.
        title: short name.
        description: first lines of every card.
        equation: what it computes, in words and one formula (markdown).
        paper: address of the paper.
        bibtex: citation.
        tags: of the model on the Hub.
        limitations: what to know before relying on it (markdown).
        usage: Python code that loads a model, with `{auto_class}`, `{base_model}` and `{folder}`.
    """

    name: str
    title: str
    description: str
    equation: str
    paper: str
    bibtex: str
    tags: tuple[str, ...]
    limitations: str
    usage: str

    def usage_of(self, auto_class: str, base_model: str, folder: str) -> str:
        """The code that loads what lies in `folder` onto `base_model`, whatever characters are in those two."""
        return self.usage.format(auto_class=auto_class, base_model=repr(base_model), folder=repr(folder))


_MOLA = Method(
    name="mola",
    title="MoLA",
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
        "Task routing needs the task of every sample, at inference too. A router can only tell tasks apart that "
        "differ in their inputs. There is no single merged weight for all tasks; one task at a time can be merged or "
        "exported."
    ),
    usage="""import hf_ext  # tells peft what MoLA is
from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained({base_model})
model = PeftModel.from_pretrained(base, {folder})  # this folder, or its id on the Hub
# with task routing every call names the samples' tasks: model(..., mola_task_ids=task_ids)
""",
)

METHODS = {method.name: method for method in (_MOLA,)}
