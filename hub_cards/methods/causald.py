"""CausalD, as cards, README and command line know it."""

from collections.abc import Mapping
from typing import Any

from hf_ext.hub_cards.methods.method import Method, Picture, Snippet


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("model_type") != "sequential_recommender":
        return {}
    names = ("architecture", "num_items", "hidden_size", "max_length", "loss")
    return {name: config[name] for name in names if config.get(name) is not None}


def _draw_groups(groups: Any, path: str) -> None:
    from hf_ext.hub_cards.plots import plot_groups

    plot_groups(groups, path)


METHOD = Method(
    name="causald",
    title="CausalD",
    summary="a small recommender taught by many others, whose predictions are averaged as an intervention would be",
    description=(
        "CausalD, causal distillation (Zhang et al., TKDE 2024): a sequential recommender that learns the next item "
        "of a history together with what several teachers say of it, averaged by the front door, which is meant to "
        "serve users with short histories better. Only the student is needed afterwards."
    ),
    equation=(
        "Whatever moves both a user's history x and the next item (a friend's suggestion) is hidden. The front door "
        "goes through a mediator m, the interest that a model reads from the history:\n\n"
        "`P(y | do(x)) = sum_m P(m | x) sum_x' P(x') P(y | m, x')`\n\n"
        "The mediators are those of the teachers, each with its weight; the histories x' are left out (`ensemble`) or "
        "are a bank of training histories (`bank`), which take the place of the user's own in a teacher's direct "
        "path. The student z learns that effect e over some candidates, computed once, and the next item:\n\n"
        "`L = (1 - alpha) L_rec + alpha tau^2 KL(softmax(e / tau) || softmax(z / tau))`"
    ),
    paper="https://arxiv.org/abs/2405.20626",
    bibtex="""@article{zhang2024causald,
  title   = {Causal Distillation for Alleviating Performance Heterogeneity in Recommender Systems},
  author  = {Zhang, Shengyu and Jiang, Ziqi and Yao, Jiangchao and Feng, Fuli and Kuang, Kun and Zhao, Zhou and
             Li, Shuo and Yang, Hongxia and Chua, Tat-Seng and Wu, Fei},
  journal = {IEEE Transactions on Knowledge and Data Engineering},
  year    = {2024},
  note    = {arXiv:2405.20626}
}""",
    tags=("hf_ext", "causald", "recommendation", "sequential-recommendation", "knowledge-distillation"),
    limitations=(
        "Written from the paper's abstract and public summaries: neither the full text nor the authors' code was "
        "available, and which reading of the front door the authors used is not known. `causald_front_door` above "
        "says which was used here: `ensemble`, a mean over teachers, or `bank`, over training histories too. A "
        "teacher's mediator is a function of the history, so that P(y | m, x') is never observed for another "
        "history: the adjustment is a heuristic, and the causal effect is not identified by it. What "
        "takes a hidden cause out of the scores also takes out what it tells of the next item: where there is one, "
        "expect a lower score on what users really took. A smaller gap between active and other users is no gain in "
        "itself: it may come from serving the active ones worse, so look at both. Items that were not in the "
        "training data are never recommended, and popular ones more often than they deserve."
    ),
    usage="""import hf_ext  # or, where it is not installed: trust_remote_code=True
from transformers import {auto_class}

model = {auto_class}.from_pretrained({place}).eval()
""",
    further=(
        Snippet(
            file="items.json",
            words="What comes next for users, from the ids of what they had, newest last; new users need no training:",
            code="""found = model.recommend([model.items.ids[:2], model.items.ids[2:3]], k=3)  # two histories
print(found.ids, found.titles, found.scores)
""",
        ),
    ),
    settings=_settings,
    pictures=(
        Picture(
            file="user_groups.png",
            caption="How well active users (head) and all others (tail) are served",
            fact="user_groups",
            draw=_draw_groups,
        ),
    ),
)
