"""A federation in this process: Flower's strategies, messages and apps, without Flower's processes.

A study has hundreds of federations whose clients train for hundredths of a second; Flower's simulation takes a
quarter of a minute to start its processes for each. What comes out is equal bit for bit, which a test holds.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.supercore.task_identity import TaskIdentity

from hf_ext.trainers.federated.flower import ClientApp, Context, Grid, Message, RecordDict, Result
from hf_ext.trainers.federated.servers import FederatedServerApp


class InProcessGrid(Grid):
    """Flower's grid whose nodes are called one after the other, when messages are sent to them.

    Args:
        app: of the clients.
        num_clients: how many there are; each keeps its context as long as the grid lasts.
    """

    def __init__(self, app: ClientApp, num_clients: int) -> None:
        self._app = app
        self._contexts = {client + 1: _context(client + 1, client, num_clients) for client in range(num_clients)}
        self._numbers = itertools.count(1)

    def get_node_ids(self) -> list[int]:
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = str(next(self._numbers))
        return self._app(message, self._contexts[message.metadata.dst_node_id])

    def set_run(self, run: Any) -> None:
        """Nothing: there is but one run."""

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def _context(node: int, client: int | None = None, num_clients: int = 0) -> Context:
    config: dict[str, Any] = {} if client is None else {"partition-id": client, "num-partitions": num_clients}
    return Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})


def run_in_process(server_app: FederatedServerApp, client_app: ClientApp, *, num_clients: int) -> Result:
    """What `simulate` does, in this process.

    Raises:
        RuntimeError: the server failed.
    """
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # who sends messages; Flower's engines say
    with _quiet():
        server_app(InProcessGrid(client_app, num_clients), _context(1))
    if server_app.result is None:
        raise RuntimeError("the server of the federation stopped before its end")
    return server_app.result


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower tells of every round."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
