"""GPL, as cards, README and command line know it."""

import math
from collections.abc import Mapping
from typing import Any

from hf_ext.hub_cards.methods.method import Method, Picture, Snippet


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("model_type") != "graph_pu":
        return {}
    names = ("conv", "num_features", "hidden_size", "num_layers", "edge_scorer", "class_prior", "threshold")
    settings = {name: config[name] for name in names if config.get(name) is not None}
    interval = config.get("prior_interval")
    if isinstance(interval, list) and len(interval) == 2:
        settings["prior_interval"] = " to ".join(f"{end:.4g}" for end in map(_number, interval))
    return settings


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else math.nan  # of a configuration that anybody may have written


def _draw_prior(epochs: Any, path: str) -> None:
    from hf_ext.hub_cards.plots import plot_prior

    plot_prior(epochs, path)


def _draw_reliability(curve: Any, path: str) -> None:
    from hf_ext.hub_cards.plots import plot_reliability

    plot_reliability(curve, path)


METHOD = Method(
    name="gpl",
    title="GPL",
    summary="finds the positive nodes of a graph of which only some positives are known, and how many there are",
    description=(
        "GPL, graph positive-unlabeled learning (Wu et al., ICML 2024): a graph neural network that tells positive "
        "nodes from negative ones after training with some known positives and no known negative. It estimates the "
        "share of positives among the unlabelled nodes, and learns a weight of every edge that is meant to take out "
        "the edges between the classes, which mix them."
    ),
    equation=(
        "P are the known positives, U all other nodes, s the network's scores. In every epoch:\n\n"
        "1. The edges' weights A take steps down the label propagation loss: labels q, which are 1 on P and S and 0 "
        "on the rest of U, spread along the weighted edges, `q <- alpha q + (1 - alpha) D^-1 A q`, and should then "
        "still be what they were: `mean over P+S of -log q + mean over U-S of -log(1 - q)`.\n"
        "2. The prior, the share of positives in U, is estimated from positives that were held out of training: "
        "`prior = min over c of Q_U(c) / Q_P(c)`, Q(c) being the share that scores at least c.\n"
        "3. S, the share `prior` of U with the highest scores, is taken for positive, and the network learns on the "
        "weighted graph: `L = mean over P+S of softplus(-s) + mean over U-S of softplus(s)`.\n\n"
        "The hyper-parameter `gpl_objective` says whether that was so here or another loss was used. With "
        "`gpl_guide` `auto` a network without edges helps to choose S where it ranks held-out positives better; where "
        "it does not, as on most graphs in which neighbours are alike, all edges keep the weight they came with."
    ),
    paper="https://arxiv.org/abs/2405.19919",
    bibtex="""@inproceedings{wu2024gpl,
  title     = {Unraveling the Impact of Heterophilic Structures on Graph Positive-Unlabeled Learning},
  author    = {Wu, Yuhao and Yao, Jiangchao and Han, Bo and Yao, Lina and Liu, Tongliang},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024},
  note      = {arXiv:2405.19919}
}""",
    tags=("hf_ext", "gpl", "graph", "positive-unlabeled-learning", "node-classification"),
    limitations=(
        "The known positives are taken for a random draw of all positives: where they are the conspicuous ones, the "
        "prior is too low and hidden positives of another kind are missed. The prior also is too high by whatever the "
        "scores cannot tell apart; its interval is chance alone. Every number in the prior's place (the cut, the "
        "probabilities) inherits that, the order of the nodes does not. The weights of edges are learned from the "
        "network's own guesses, which they can confirm where those are wrong. Written from the paper's abstract and "
        "public notes on it: neither the full text nor the authors' code was available."
    ),
    usage="""import hf_ext  # or, where it is not installed: trust_remote_code=True
from transformers import {auto_class}

model = {auto_class}.from_pretrained({place}).eval()
""",
    further=(
        Snippet(
            file="config.json",
            words="Nodes of a graph, from the one that is most likely positive; edges lead from `edge_index[0]` to "
            "`edge_index[1]`:",
            code="""import torch

x = torch.randn(5, model.config.num_features)  # the nodes' features
edge_index = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
found = model.predict(x, edge_index)
print(found.ranked(k=3), found.probabilities, found.positive)
""",
        ),
    ),
    settings=_settings,
    pictures=(
        Picture(
            file="class_prior.png",
            caption="The estimated share of positives among the unlabelled nodes, and the share of edge weight "
            "between nodes that are taken for the same class, over epochs",
            fact="prior_epochs",
            draw=_draw_prior,
        ),
        Picture(
            file="reliability.png",
            caption="Predicted probabilities beside the true share of positives, in bins of equal numbers of nodes",
            fact="reliability",
            draw=_draw_reliability,
        ),
    ),
)
