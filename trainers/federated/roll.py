"""Which node of a federation is which client: Flower's ids of nodes are drawn anew in every run."""

import logging
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

from hf_ext.trainers.federated.clients import passport_of
from hf_ext.trainers.federated.flower import Grid, Message, RecordDict

logger = logging.getLogger(__name__)

#: seconds that a node has to say who it is; a new process imports torch first
_PATIENCE = 120.0


class Roll:
    """The clients' numbers by the ids of their nodes; every node is asked once.

    A node that does not say (of another ClientApp than this package's) goes by its id, behind those that do.
    """

    def __init__(self) -> None:
        self._clients: dict[int, int | None] = {}
        self._claims: Counter[int] = Counter()

    def call(self, grid: Grid, nodes: Iterable[int]) -> None:
        """Ask the nodes that have not been asked."""
        new = sorted(set(nodes) - set(self._clients))
        if not new:
            return
        messages = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in new]
        replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=_PATIENCE)}
        for node in new:
            self._note(node, replies.get(node))

    @property
    def num_clients(self) -> int:
        """How many clients there are: what most nodes say of it, but no fewer than have been seen."""
        most = max(self._claims.items(), key=lambda item: (item[1], item[0]), default=(0, 0))[0]
        return max(most, len(set(map(self.name, self._clients))))  # one that has come again is two nodes

    def _note(self, node: int, reply: Message | None) -> None:
        passport: Any = {}
        if reply is not None and not reply.has_error():
            passport = passport_of(reply.content)
        number, clients = (_count(passport.get(name)) for name in ("partition-id", "num-partitions"))
        if number is None:
            logger.warning(f"node {node} does not say which client it is; it is sampled by its id, which changes")
        elif number in self._clients.values():
            logger.warning(f"client {number} is there more than once; node {node} is one more")
        self._clients[node] = number
        if clients:
            self._claims[clients] += 1

    def client(self, node: int) -> int:
        """A node's client, or its own id if it does not say."""
        number = self._clients.get(node)
        return node if number is None else number

    def place(self, node: int) -> tuple[bool, int, int]:
        """Where a node stands in the order of clients."""
        number = self._clients.get(node)
        return number is None, node if number is None else number, node

    def name(self, node: int) -> str:
        """A node in words."""
        number = self._clients.get(node)
        return f"node {node}" if number is None else f"client {number}"


def _count(value: Any) -> int | None:
    """What a node says, if it is a number of things."""
    return value if type(value) is int and value >= 0 else None


class InOrder(Grid):
    """A grid whose nodes are in the order of their clients, for strategies that sample of them.

    Flower's strategies do that by the module `random`, right after they have asked for the nodes: so it starts from a
    seed then, and no other thread has the time to draw from it. After the block it is where it was.

    Args:
        grid: Flower's.
        roll: the clients.
        seed: of the sampling.
    """

    def __init__(self, grid: Grid, roll: Roll, seed: str) -> None:
        self._grid, self._roll, self._seed = grid, roll, seed

    def __enter__(self) -> "InOrder":
        self._state = random.getstate()
        return self

    def __exit__(self, *args: object) -> None:
        random.setstate(self._state)

    def get_node_ids(self) -> list[int]:
        nodes = list(self._grid.get_node_ids())
        self._roll.call(self._grid, nodes)
        nodes.sort(key=self._roll.place)
        random.seed(self._seed)
        return nodes

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)
