"""FedLESAM, as cards, README and command line know it."""

from hf_ext.hub_cards.methods.method import CLIENTS_AND_CLASSES, Method

METHOD = Method(
    name="fedlesam",
    title="FedLESAM",
    summary="a federated Trainer for clients whose data differ: sharpness-aware minimisation at the price of FedAvg",
    description=(
        "FedLESAM, locally estimated global perturbations (Fan et al., ICML 2024): clients that do not show each "
        "other their data train one model, whose weights they perturb along the change of the global model."
    ),
    equation=(
        "A client that receives the global model w_t, and received w_prev when it last took part, takes all gradients "
        "of the round at weights that are moved by one perturbation:\n\n"
        "`eps = rho (w_prev - w_t) / ||w_prev - w_t||`, `w <- w - lr grad L_i(w + eps)`\n\n"
        "The server averages what the clients send. FedSAM takes a second pass per update for a perturbation along "
        "the client's own gradient; here the way of the global model stands for the gradient of all clients, and "
        "costs nothing. In its first round a client has no w_prev and trains as without the method."
    ),
    paper="https://arxiv.org/abs/2405.18890",
    bibtex="""@inproceedings{fan2024fedlesam,
  title     = {Locally Estimated Global Perturbations are Better than Local Perturbations for
               Federated Sharpness-aware Minimization},
  author    = {Fan, Ziqing and Hu, Shengchao and Yao, Jiangchao and Niu, Gang and Zhang, Ya and
               Sugiyama, Masashi and Wang, Yanfeng},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024},
  note      = {arXiv:2405.18890}
}""",
    tags=("hf_ext", "fedlesam", "federated-learning", "sharpness-aware-minimization"),
    limitations=(
        "Clients' data stay with them, their models do not: without further measures (clipping and noise, secure "
        "aggregation) a model that a client sends can tell of its data. A client that takes part but once gets "
        "nothing of the method. The longer ago a client took part, the less its last model says of the others' way."
    ),
    pictures=(CLIENTS_AND_CLASSES,),
)
