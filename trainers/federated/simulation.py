"""A federation in one machine, by Flower's simulation or in this very process."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_ext.trainers.federated.flower import FLOWER_LOGGER, ClientApp, Result, run_simulation
from hf_ext.trainers.federated.in_process import run_in_process
from hf_ext.trainers.federated.servers import FederatedServerApp

#: that apps are to be written for `flwr run`, and that nothing is asked of the clients but training
_NO_NEWS = ("run_simulation", "fraction_evaluate is set to 0.0")


def simulate(
    server_app: FederatedServerApp,
    client_app: ClientApp,
    *,
    num_clients: int,
    cpus_per_client: int = 1,
    gpus_per_client: float = 0.0,
    cpus: int | None = None,
    in_process: bool = False,
    verbose: bool = False,
) -> Result:
    """Run both apps in this machine: the server in this process, clients in processes of Ray, and in turn.

    The same apps run unchanged in a deployment, and by `flwr run` on a folder.

    Args:
        server_app, client_app: of `server_app` and `client_app`.
        num_clients: how many there are.
        cpus_per_client: cores for each client that trains at a time; torch computes on as many threads.
        gpus_per_client: share of a GPU for each.
        cpus: cores in all, by default the machine's.
        in_process: without Ray, clients one after the other in this process, which starts at once: for small models
            and for debuggers. What comes out is the same.
        verbose: let Flower and Ray say what they do; their warnings, and what is left out of a round, are always seen.

    Returns:
        Flower's result; `server_app.trainer.model` is the global model.

    Raises:
        RuntimeError: the federation stopped before its end; errors of the server come as they are.
    """
    server_app.result = None
    with _lines_of_flower(verbose):
        if in_process:
            run_in_process(server_app, client_app, num_clients)
        else:
            cores = {"num_cpus": cpus or os.cpu_count() or 1, "include_dashboard": False}
            settings: Any = {
                "client_resources": {"num_cpus": cpus_per_client, "num_gpus": gpus_per_client},
                "init_args": cores | ({} if verbose else {"log_to_driver": False, "logging_level": logging.ERROR}),
            }
            run_simulation(
                server_app=server_app, client_app=client_app, num_supernodes=num_clients, backend_config=settings
            )
    result: Result | None = server_app.result  # set as it ran, which mypy cannot see
    if result is None:
        raise RuntimeError("the server of the federation stopped before its end; what stopped it is logged above")
    return result


@contextmanager
def _lines_of_flower(verbose: bool) -> Iterator[None]:
    """All of them, or warnings alone, and of these none that only repeats how it was called."""

    def matters(line: logging.LogRecord) -> bool:
        return line.levelno >= logging.WARNING and not any(words in line.getMessage() for words in _NO_NEWS)

    if verbose:
        yield
        return
    FLOWER_LOGGER.addFilter(matters)
    try:
        yield
    finally:
        FLOWER_LOGGER.removeFilter(matters)
