"""A federation in this process: Flower's messages, strategies and apps, without its transport."""

import itertools
from collections.abc import Iterable
from typing import Any

from hf_ext.trainers.federated.flower import (
    ClientApp,
    Context,
    Error,
    ErrorCode,
    Grid,
    Message,
    RecordDict,
    TaskIdentity,
)
from hf_ext.trainers.federated.servers import FederatedServerApp


class ProcessGrid(Grid):
    """A grid whose nodes are called one after the other.

    Args:
        app: of the clients.
        num_clients: how many.
    """

    def __init__(self, app: ClientApp, num_clients: int) -> None:
        self.app = app
        self.contexts = {client + 1: _context(client, num_clients) for client in range(num_clients)}
        self._message_ids = itertools.count(1)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = str(next(self._message_ids))
        try:
            return self.app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:  # as Flower's engines do
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    # ---- what a server that waits has no use for
    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def run_in_process(server_app: FederatedServerApp, client_app: ClientApp, num_clients: int) -> None:
    """Run both apps in this thread; what the server raises comes through."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # who sends messages
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    server_app(ProcessGrid(client_app, num_clients), context)


def _context(client: int, num_clients: int) -> Context:
    config: Any = {"partition-id": client, "num-partitions": num_clients}
    return Context(run_id=1, node_id=client + 1, node_config=config, state=RecordDict(), run_config={})
