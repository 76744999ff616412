"""What a server notes of a federation, and the state of a strategy: all that a checkpoint holds beside the model."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_ext.trainers.federated.flower import Array, ArrayRecord, RecordDict, Strategy

#: kinds of metrics: of clients' training, of clients' evaluation, of the server's
TRAIN, EVALUATE, SERVER = "train", "evaluate", "server"
_MOST_LINES = 10_000


@dataclass
class Ledger:
    """Who took part when, and what was measured.

    Args:
        federation: a name that no other federation has.
        rounds_done: rounds before this run; Flower's own count starts at 1 again.
        num_clients: the most that were known of.
        taken: by client, the last round whose reply was taken.
        participants: by round, the clients whose replies were taken.
        left_out: replies that were not, in words, the newest 10000.
        bytes_sent, bytes_received: the most that went to one client in a round, and came from it: tensors, as sent.
        history: metrics by kind and round.
    """

    federation: str = ""
    rounds_done: int = 0
    num_clients: int = 0
    taken: dict[int, int] = field(default_factory=dict)
    participants: dict[int, list[int]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    bytes_sent: int = 0
    bytes_received: int = 0
    history: dict[str, dict[int, dict[str, Any]]] = field(
        default_factory=lambda: {kind: {} for kind in (TRAIN, EVALUATE, SERVER)}
    )

    def take(self, number: int, clients: list[int]) -> None:
        """Note whose replies a round was made of."""
        self.participants[number] = clients
        self.taken |= dict.fromkeys(clients, number)

    def measure(self, kind: str, number: int, metrics: Mapping[str, Any] | None) -> None:
        """Note a round's metrics."""
        if metrics is not None:
            self.history[kind][number] = dict(metrics)

    def weigh(self, sent: Iterable[RecordDict] = (), received: Iterable[RecordDict] = ()) -> None:
        """Note how much travelled, of records that went to one client or came from it each."""
        self.bytes_sent = max([self.bytes_sent, *map(_bytes_in, sent)])
        self.bytes_received = max([self.bytes_received, *map(_bytes_in, received)])

    def leave_out(self, line: str) -> None:
        """Note a reply that is not taken; of very many the newest."""
        self.left_out.append(line)
        del self.left_out[:-_MOST_LINES]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Ledger":
        """From JSON, whose names are all text."""
        with_numbers = {name: _numbered(values[name]) for name in ("taken", "participants")}
        history = {kind: _numbered(rounds) for kind, rounds in values["history"].items()}
        return cls(**{**values, **with_numbers, "history": history})


def _bytes_in(records: RecordDict) -> int:
    return sum(record.count_bytes() for record in records.array_records.values())


def _numbered(values: Mapping[str, Any]) -> dict[int, Any]:
    return {int(number): value for number, value in values.items()}


def strategy_state(strategy: Strategy, first: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a strategy has come to know: its arrays (moments, control variates), and numbers that are not as at first.

    That is read off its attributes, so Flower's strategies have it as well as those of this package: attributes that
    hold arrays, by name or in a list, of the strategy and of the one within it.

    Args:
        strategy: any.
        first: `numbers_of` it before the first round.
    """
    tensors: dict[str, np.ndarray] = {}
    kinds: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for name, value in _attributes(strategy):
        kind, arrays = _arrays_in(value)
        if arrays:
            kinds[name], names[name] = kind, list(arrays)
            tensors |= {f"{name}/{key}": np.asarray(array, order="C") for key, array in arrays.items()}
    numbers = {name: value for name, value in numbers_of(strategy).items() if first.get(name) != value}
    return tensors, {"kinds": kinds, "names": names, "numbers": numbers}


def _arrays_in(value: Any) -> tuple[str, dict[str, Any]]:
    """What kind of collection of arrays an attribute is, and these by name; none of another attribute."""
    if isinstance(value, ArrayRecord):
        return "record", {key: array.numpy() for key, array in value.items()}
    kind = "list" if isinstance(value, list) else "dict" if isinstance(value, dict) else ""
    named = dict(enumerate(value)) if kind == "list" else value if kind else {}
    is_arrays = all(isinstance(one, np.ndarray) for one in named.values())
    return kind, {str(key): one for key, one in named.items()} if is_arrays else {}


def restore_strategy_state(strategy: Strategy, tensors: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
    """Put back what `strategy_state` read."""
    owners = dict(enumerate(within(strategy)))
    for place, kind in values["kinds"].items():
        depth, attribute = place.split("/")
        value: Any = {name: tensors[f"{place}/{name}"] for name in values["names"][place]}  # in the order they had
        if kind == "record":
            value = ArrayRecord({name: Array(array) for name, array in value.items()})
        elif kind == "list":
            value = list(value.values())
        setattr(owners[int(depth)], attribute, value)
    for place, number in values["numbers"].items():
        depth, attribute = place.split("/")
        setattr(owners[int(depth)], attribute, number)


def numbers_of(strategy: Strategy) -> dict[str, float]:
    """The numbers among a strategy's attributes."""
    return {name: value for name, value in _attributes(strategy) if type(value) in (int, float)}


def _attributes(strategy: Strategy) -> Iterator[tuple[str, Any]]:
    for depth, owner in enumerate(within(strategy)):
        yield from ((f"{depth}/{name}", value) for name, value in vars(owner).items())


def within(strategy: Strategy) -> Iterator[Strategy]:
    """A strategy, and those that it is wrapped around."""
    inner: Any = strategy
    while isinstance(inner, Strategy):
        yield inner
        inner = vars(inner).get("strategy")
