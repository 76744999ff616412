"""DISAM, as cards, README and command line know it."""

from hf_ext.hub_cards.methods.method import Method

METHOD = Method(
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
)
