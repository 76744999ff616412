"""RD, as cards, README and command line know it."""

from collections.abc import Mapping
from typing import Any

from hf_ext.hub_cards.methods.method import ON_IMAGES, USAGES, Method, Snippet, name_of


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("model_type") != "rd":
        return {}
    labels = config.get("id2label") or {}
    shown = {"student": name_of(config["student_config"])} if config.get("student_config") else {}
    return shown | ({"classes": [labels[label] for label in sorted(labels, key=int)]} if labels else {})


METHOD = Method(
    name="rd",
    title="RD",
    summary="a small image classifier that learns together with reprogrammed features of a large frozen model",
    description=(
        "RD, reprogramming distillation (Zhou et al., MICCAI 2024): a small student trained for its own task "
        "together with the features of a frozen foundation model of another task, made fit by a small module that "
        "nobody needs afterwards."
    ),
    equation=(
        "With s the student's features of an image, t the frozen teacher's, `r = phi(t)` the reprogrammed ones, g "
        "the student's last linear layer, which both share, and l the cross-entropy:\n\n"
        "`L = l(g(s), y) + alpha * l(g(r), y) - gamma * CKA(r, s) + beta * tau^2 * KL(g(r) || g(s))`\n\n"
        "`CKA(r, s) = |Rc^T Sc|^2 / (|Rc^T Rc| |Sc^T Sc|)`, with the columns centred over the batch, is large where "
        "both find the same images alike, whatever the axes of their features. Student, phi and g learn at the same "
        "time; no gradient enters the teacher. In inference there is the student alone."
    ),
    paper="https://arxiv.org/abs/2407.06504",
    bibtex="""@inproceedings{zhou2024rd,
  title     = {Reprogramming Distillation for Medical Foundation Models},
  author    = {Zhou, Yuhang and Du, Siyuan and Li, Haolin and Yao, Jiangchao and Zhang, Ya and Wang, Yanfeng},
  booktitle = {Medical Image Computing and Computer Assisted Intervention (MICCAI)},
  year      = {2024},
  note      = {arXiv:2407.06504}
}""",
    tags=("hf_ext", "rd", "knowledge-distillation", "image-classification"),
    limitations=(
        "Written from the paper's abstract and public summaries: neither the paper's full text nor the authors' code "
        "was available, so nothing is verified against either, and the weights, the form of phi and the linear "
        "kernel are choices made here. There is something to gain only where the teacher is better at the task than "
        "the student: look at a linear probe of its features first. The alignment needs batches of 32 or more "
        "different images; with fewer images than features it is large for unrelated features too. The teacher has "
        "to see what the student sees, with the size and normalisation of its own: a mistake there raises no error. "
        "A student may take over its teacher's biases, and the teacher's licence may bind what was learned from it."
    ),
    usage=f"""import hf_ext  # or, where it is not installed: trust_remote_code=True
{USAGES["transformers"]}""",
    further=(
        ON_IMAGES,
        Snippet(
            file="student/config.json",
            words="The student alone, a plain model that needs neither `hf_ext` nor `trust_remote_code`:",
            code="""from transformers import {auto_class}

student = {auto_class}.from_pretrained({place}, subfolder="student").eval()
""",
        ),
    ),
    settings=_settings,
)
