"""Around any Flower strategy: clients sampled by seed, replies in order, none taken that is not what it should be."""

import logging
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hf_ext.trainers.federated.clients import passport_of
from hf_ext.trainers.federated.flower import (
    SUPERLINK_NODE_ID,
    ArrayRecord,
    ConfigRecord,
    ErrorCode,
    FedAvg,
    Grid,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
    Strategy,
)
from hf_ext.trainers.federated.ledger import EVALUATE, TRAIN, Ledger, within
from hf_ext.trainers.federated.records import Layout, fault_in, layout_of, restored
from hf_ext.trainers.federated.roll import InOrder, Roll

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Base = FedAvg
else:
    _Base = object

#: more rows than any client has
_MOST_EXAMPLES = 10**12
_LONGEST_LINE = 1000


class GuardedMixin(_Base):
    """Put in front of a Flower strategy, `class MyKrum(GuardedMixin, Krum)`; `guarded` does it for an object.

    - Clients are sampled over the sorted numbers of their partitions, by a generator from `seed` and the round alone;
      replies are handed to the strategy in that order. So two runs with one seed are equal bit for bit.
    - A reply is left out, with a line that names the client and the reason, if it is an error or the second of a
      client, if its arrays are not those that were sent (names, shapes, dtypes, size) or not finite, if it belongs to
      another round or federation, or if its number of examples is no positive number or more than
      `max_examples_ratio` times the median of the others. Metrics that not all replies have are left out. Arrays are
      handed on in the order in which they were sent: some strategies go by that.
    - Arrays keep their dtypes: a mean of integers is rounded. If the strategy makes values that are not finite of
      finite replies, the global model and the strategy stay as they were; so they do where no reply is left.

    Args:
        seed: of the sampling.
        max_examples_ratio: how many times the median of a round's numbers of examples one may be.
    """

    def __init__(self, *args: Any, seed: int | None = None, max_examples_ratio: float = 1000.0, **kwargs: Any) -> None:
        if not max_examples_ratio >= 1:
            raise ValueError(f"max_examples_ratio: found {max_examples_ratio!r}, allowed are numbers >= 1")
        super().__init__(*args, **kwargs)
        self.seed = seed
        self.max_examples_ratio = max_examples_ratio
        #: of the model's tensors those that are no parameters; None where only the clients know
        self.buffers: frozenset[str] | None = None
        self.ledger = Ledger()
        self.roll = Roll()
        self._layout: Layout = {}
        self._asked: list[Metadata] = []

    # ---------------------------------------------------------------------------------------------- sampling
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages, to clients that the seed samples, each with what was taken of its client last."""
        number = server_round + self.ledger.rounds_done
        self._layout = layout_of(arrays)
        if self.ledger.federation:
            config["federation"] = self.ledger.federation
        with InOrder(grid, self.roll, f"{self.seed or 0}/{number}/train") as ordered:
            messages = list(super().configure_train(number, arrays, config, ordered))
        self.ledger.num_clients = max(self.ledger.num_clients, self.roll.num_clients)
        self._asked = [message.metadata for message in messages]
        self.ledger.weigh(sent=[message.content for message in messages])
        for message in messages:
            message.content = self._with_taken(message)
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages, to clients that the seed samples."""
        number = server_round + self.ledger.rounds_done
        with InOrder(grid, self.roll, f"{self.seed or 0}/{number}/evaluate") as ordered:
            messages = list(super().configure_evaluate(number, arrays, config, ordered))
        self._asked = [message.metadata for message in messages]
        return messages

    def _with_taken(self, message: Message) -> RecordDict:
        """A message's records, with the last round whose reply this client's was taken of."""
        taken = {"taken-round": self.ledger.taken.get(self.roll.client(message.metadata.dst_node_id), 0)}
        records: dict[str, Any] = dict(message.content)
        for key, config in message.content.config_records.items():
            records[key] = ConfigRecord({**config, **taken})
        return RecordDict(records)

    # ---------------------------------------------------------------------------------------------- replies
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the strategy makes of the replies that are what they should be."""
        number = server_round + self.ledger.rounds_done
        good = self._checked(number, replies, self._fault_in_training)
        if not good:
            return None, None
        self.ledger.weigh(received=[reply.content for reply in good])  # strategies take records out
        _put_in_order(good, self._layout)
        before = [(owner, dict(vars(owner))) for owner in within(self)]
        arrays, metrics = super().aggregate_train(number, good)
        if arrays is not None:
            fault = fault_in(arrays, self._layout, of_means=True)
            if not fault:
                arrays = restored(arrays, self._layout)
                fault = fault_in(arrays, self._layout)  # a float64 may be too large for a float32
            if fault:
                for owner, attributes in before:  # moments that are not finite would spoil all later rounds
                    vars(owner).clear()
                    vars(owner).update(attributes)
                self._leave_out(f"round {number}: the aggregate has {fault}; the global model stays as it was")
                return None, metrics
            self.accept()
            self.ledger.take(number, sorted(self.roll.client(reply.metadata.src_node_id) for reply in good))
        self.ledger.measure(TRAIN, number, metrics)
        return arrays, metrics

    def check_within(self, outer: Strategy) -> None:
        """Refuse a wrapper around this strategy that it does not go with. Cooperative.

        Raises:
            ValueError: naming both.
        """
        parent = getattr(super(), "check_within", None)
        if parent is not None:
            parent(outer)

    def accept(self) -> None:
        """Called once a round's aggregate is the new global model. Cooperative."""
        parent = getattr(super(), "accept", None)
        if parent is not None:
            parent()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """What the strategy makes of the metrics that are what they should be."""
        number = server_round + self.ledger.rounds_done
        good = self._checked(number, replies, self._fault_in_metrics)
        metrics = super().aggregate_evaluate(number, good) if good else None
        self.ledger.measure(EVALUATE, number, metrics)
        return metrics

    def _checked(self, number: int, replies: Iterable[Message], fault_of: Any) -> list[Message]:
        asked = {message.message_id: message.dst_node_id for message in self._asked}

        def node_of(reply: Message) -> int:
            """Who has replied; Flower says in its own name that one is gone."""
            own = reply.metadata.src_node_id
            return asked.get(reply.metadata.reply_to_message_id, own) if own == SUPERLINK_NODE_ID else own

        replies = sorted(replies, key=lambda reply: self.roll.place(node_of(reply)))
        taken: set[str] = set()
        good = []
        for reply in replies:
            node = node_of(reply)
            client = self.roll.name(node)  # one that has come again may be there as two nodes for a while
            fault = self._fault_in_sender(node) or _error_in(reply)
            if not fault and client in taken:
                fault = "found a second one, allowed is one"
            fault = fault or fault_of(number, reply)
            if fault:
                self._leave_out(f"round {number}: the reply of {client} is left out: {fault}")
            else:
                taken.add(client)
                good.append(reply)
        silent = set(asked.values()) - set(map(node_of, replies))
        for node in sorted(silent, key=self.roll.place):
            self._leave_out(f"round {number}: {self.roll.name(node)} has not replied in time")
        good = self._without_absurd_sizes(number, good)
        _keep_common_metrics(good)
        return good

    def _fault_in_sender(self, node: int) -> str | None:
        asked = {message.dst_node_id for message in self._asked}
        return None if not asked or node in asked else "nothing was asked of this client"

    def further_layouts(self, reply: RecordDict, layout: Layout) -> dict[str, Layout]:
        """Records of arrays that a reply has to have beside the model's, and what is in them. Cooperative."""
        parent = getattr(super(), "further_layouts", None)
        return {} if parent is None else parent(reply, layout)

    def _fault_in_training(self, number: int, reply: Message) -> str | None:
        records = reply.content.array_records
        layouts = self.further_layouts(reply.content, self._layout)
        models = [key for key in records if key not in layouts]
        if len(models) != 1:
            return f"found {len(models)} records of a model's arrays, allowed is one"
        for key, layout in {models[0]: self._layout, **layouts}.items():
            if key not in records:
                return f"found no arrays {key!r}, allowed are those of every trainable tensor"
            fault = fault_in(records[key], layout)
            if fault:
                return f"{key}: found {fault}"
        return self._fault_in_metrics(number, reply)

    def _fault_in_metrics(self, number: int, reply: Message) -> str | None:
        content = reply.content
        passport = passport_of(content)
        for name, expected in (("server-round", number), ("federation", self.ledger.federation)):
            if expected and passport.get(name, expected) != expected:
                return f"{name}: found {passport[name]!r}, allowed is {expected!r}"
        if len(content.metric_records) != 1:
            return f"found {len(content.metric_records)} records of metrics, allowed is one"
        return _fault_in_numbers(next(iter(content.metric_records.values())), self._weight_key)

    @property
    def _weight_key(self) -> str:
        return str(getattr(self, "weighted_by_key", "num-examples"))

    def _without_absurd_sizes(self, number: int, replies: list[Message]) -> list[Message]:
        sizes: list[Any] = [_metrics_of(reply)[self._weight_key] for reply in replies]
        good = []
        for index, (reply, size) in enumerate(zip(replies, sizes, strict=True)):
            others = sizes[:index] + sizes[index + 1 :]
            most = statistics.median(others) * self.max_examples_ratio if len(others) > 1 else math.inf
            if size <= most:
                good.append(reply)
                continue
            self._leave_out(
                f"round {number}: the reply of {self.roll.name(reply.metadata.src_node_id)} is left out: "
                f"{self._weight_key}: found {size}, allowed are at most {self.max_examples_ratio:g} times the median "
                f"of the others, {most:g}"
            )
        return good

    def _leave_out(self, line: str) -> None:
        line = " ".join(line.split())  # parts of it are what others have written
        self.ledger.leave_out(line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}...")
        logger.warning(self.ledger.left_out[-1])


class Around(Strategy):
    """A strategy that does what another one does."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def __getattr__(self, name: str) -> Any:
        if name == "strategy":
            raise AttributeError(name)
        return getattr(self.strategy, name)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        self.strategy.summary()


class GuardedStrategy(GuardedMixin, Around):
    """A strategy with a guard around it; see `GuardedMixin`."""


def guarded(strategy: Strategy, *, seed: int | None = None) -> GuardedMixin:
    """A strategy with a guard: itself if it has one, else one around it, as for Flower's Krum or its wrappers.

    Args:
        strategy: of Flower, or one's own.
        seed: of the sampling, where the strategy has none.

    Raises:
        ValueError: a strategy in a wrapper that it does not go with.
    """
    guard = strategy if isinstance(strategy, GuardedMixin) else GuardedStrategy(strategy)
    for inner in within(guard):
        if isinstance(inner, GuardedMixin):
            inner.seed = seed if inner.seed is None else inner.seed
            if inner is not strategy and inner is not guard:
                inner.check_within(strategy)
    return guard


def _error_in(reply: Message) -> str | None:
    if not reply.has_error():
        return None
    kinds = {code: name for name, code in vars(ErrorCode).items() if isinstance(code, int)}
    return f"found an error ({reply.error.reason or kinds.get(reply.error.code, reply.error.code)})"


def _metrics_of(reply: Message) -> MetricRecord:
    return next(iter(reply.content.metric_records.values()))


def _fault_in_numbers(metrics: Mapping[str, Any], weight_key: str) -> str | None:
    size = metrics.get(weight_key)
    allowed = f"allowed are numbers > 0, at most {_MOST_EXAMPLES:g}"
    if size is None:
        return f"{weight_key}: found nothing, {allowed}"
    if isinstance(size, list) or not math.isfinite(size) or not 0 < size <= _MOST_EXAMPLES:
        return f"{weight_key}: found {size!r}, {allowed}"
    for name, value in metrics.items():
        if not all(map(math.isfinite, value if isinstance(value, list) else [value])):
            return f"{name}: found {value!r}, allowed are finite numbers"
    return None


def _put_in_order(replies: list[Message], layout: Layout) -> None:
    """Arrays in the order of those that were sent: robust and private strategies of Flower's go by their places."""
    for reply in replies:
        for key, record in reply.content.array_records.items():
            names = [name for name in layout if name in record]
            if names != list(record) and len(names) == len(record):
                reply.content[key] = ArrayRecord({name: record[name] for name in names})


def _keep_common_metrics(replies: list[Message]) -> None:
    """Leave out metrics that not all replies have alike: Flower's strategies give up on a round with such."""
    kinds = [{name: _length(value) for name, value in _metrics_of(reply).items()} for reply in replies]
    common = {item for item in kinds[0].items() if all(item in kind.items() for kind in kinds)} if kinds else set()
    for reply in replies:
        metrics = _metrics_of(reply)
        if any((name, _length(value)) not in common for name, value in metrics.items()):
            key = next(iter(reply.content.metric_records))
            kept = {name: value for name, value in metrics.items() if (name, _length(value)) in common}
            reply.content[key] = MetricRecord(kept)


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, list) else None
