"""FedGELA's server."""

from hf_ext.trainers.federated.flower import FedAvg
from hf_ext.trainers.federated.guard import GuardedMixin


class FedGELA(GuardedMixin, FedAvg):
    """Flower's FedAvg for clients that train with `FedGELAMixin`.

    The classifier is the same fixed simplex everywhere and does not travel; the rest is averaged by number of rows.
    Clients report both views: metrics of the global model under their names, and those of the personal one, which
    weighs the classes as a client's own data do, as `eval_personal_<metric>`.

    Source: Fan et al., "Federated Learning with Bilateral Curation for Partially Class-Disjoint Data" (NeurIPS 2023,
    arXiv:2405.18972).
    """
