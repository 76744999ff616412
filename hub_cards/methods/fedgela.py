"""FedGELA, as cards, README and command line know it."""

from collections.abc import Mapping
from typing import Any

from hf_ext.hub_cards.methods.method import CLIENTS_AND_CLASSES, ON_IMAGES, Method, name_of


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("model_type") != "etf":
        return {}
    shown = {"network": name_of(config["base_config"])} if config.get("base_config") else {}
    names = ("etf_seed", "etf_temperature", "etf_feature_norm", "etf_projection_size")
    return shown | {name: config[name] for name in names if config.get(name) is not None}


METHOD = Method(
    name="fedgela",
    title="FedGELA",
    summary="a federated Trainer for clients that lack classes: a fixed simplex head, scaled to each one's classes",
    description=(
        "FedGELA, federated learning with bilateral curation (Fan et al., NeurIPS 2023): clients that hold only some "
        "of the classes each train one model around a classifier that nobody trains, and each has a view of its own."
    ),
    equation=(
        "The classifier is a simplex M, whose C vectors are all equally far apart. A client with n_c of its n rows of "
        "class c trains the features f on logits of the simplex scaled to what it has:\n\n"
        "`phi_c = C n_c / n`, local and personal logits `f (M phi) / temperature`, global ones `f M / temperature`\n\n"
        "A learnt classifier lets classes that a client lacks collapse into each other there; here their angles stay, "
        "and the client's own classes use the space that they leave. The server averages all but the simplex."
    ),
    paper="https://arxiv.org/abs/2405.18972",
    bibtex="""@inproceedings{fan2023fedgela,
  title     = {Federated Learning with Bilateral Curation for Partially Class-Disjoint Data},
  author    = {Fan, Ziqing and Zhang, Ruipeng and Yao, Jiangchao and Han, Bo and Zhang, Ya and Wang, Yanfeng},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2023},
  note      = {arXiv:2405.18972}
}""",
    tags=("hf_ext", "fedgela", "federated-learning", "neural-collapse"),
    limitations=(
        "Clients' data stay with them, their models do not: without further measures (clipping and noise, secure "
        "aggregation) a model that a client sends can tell of its data. What is saved is the global view; a personal "
        "one needs the client's own class counts, which are not in this folder. A simplex knows of no classes that "
        "are more alike than others."
    ),
    usage="""import hf_ext  # or pass trust_remote_code=True, without it
from transformers import {auto_class}

model = {auto_class}.from_pretrained({place}).eval()
""",
    further=(ON_IMAGES,),
    settings=_settings,
    pictures=(CLIENTS_AND_CLASSES,),
)
