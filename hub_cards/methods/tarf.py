"""TARF, as cards, README and command line know it."""

from typing import Any

from hf_ext.hub_cards.methods.method import Method, Picture


def _draw_gravity(identified: Any, path: str) -> None:
    from hf_ext.hub_cards.plots import plot_gravity

    plot_gravity(identified, path)


METHOD = Method(
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
)
