"""A federation in one machine, by Flower's simulation."""

import os
from typing import Any

from hf_ext.trainers.federated.flower import ClientApp, Result, run_simulation
from hf_ext.trainers.federated.servers import FederatedServerApp


def simulate(
    server_app: FederatedServerApp,
    client_app: ClientApp,
    *,
    num_clients: int,
    cpus_per_client: int = 1,
    gpus_per_client: float = 0.0,
    cpus: int | None = None,
) -> Result:
    """Run both apps in this machine: the server in this process, clients in processes of Ray, and in turn.

    The same apps run unchanged in a deployment, and by `flwr run` on a folder.

    Args:
        server_app, client_app: of `server_app` and `client_app`.
        num_clients: how many there are.
        cpus_per_client: cores for each client that trains at a time; torch computes on as many threads.
        gpus_per_client: share of a GPU for each.
        cpus: cores in all, by default the machine's.

    Returns:
        Flower's result; `server_app.trainer.model` is the global model.

    Raises:
        RuntimeError: the server failed.
    """
    server_app.result = None  # of an earlier run
    settings: Any = {
        "client_resources": {"num_cpus": cpus_per_client, "num_gpus": gpus_per_client},
        "init_args": {"num_cpus": cpus or os.cpu_count() or 1, "include_dashboard": False},
    }
    run_simulation(server_app=server_app, client_app=client_app, num_supernodes=num_clients, backend_config=settings)
    result: Result | None = server_app.result
    if result is None:
        raise RuntimeError("the server of the federation stopped before its end; what stopped it is logged above")
    return result
