"""FedLESAM's server: how the clients' models become the next global one, in its three variants."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hf_ext.functional import global_control_update, server_update
from hf_ext.trainers.federated.clients import NEEDS, passport_of
from hf_ext.trainers.federated.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    FedAvg,
    Grid,
    Message,
    MetricRecord,
    RecordDict,
)
from hf_ext.trainers.federated.guard import GuardedMixin
from hf_ext.trainers.federated.ledger import Ledger
from hf_ext.trainers.federated.records import Layout

_VARIANTS, _SOURCES = ("base", "S", "D"), ("client", "server")
_TRAIN = "train"


class VariantUpdates(FedAvg):
    """The server's part of the variants, of replies that are what they should be; see `FedLESAM`."""

    ledger: Ledger
    buffers: frozenset[str] | None

    def __init__(
        self,
        *args: Any,
        fedlesam_variant: Literal["base", "S", "D"] = "base",
        fedlesam_source: Literal["client", "server"] = "client",
        fedlesam_global_lr: float = 1.0,
        **kwargs: Any,
    ) -> None:
        for name, value, allowed in (
            ("fedlesam_variant", fedlesam_variant, _VARIANTS),
            ("fedlesam_source", fedlesam_source, _SOURCES),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: found {value!r}, allowed are {', '.join(map(repr, allowed))}")
        if not 0 < fedlesam_global_lr < float("inf"):
            raise ValueError(f"fedlesam_global_lr: found {fedlesam_global_lr!r}, allowed are finite numbers > 0")
        super().__init__(*args, **kwargs)
        self.fedlesam_variant, self.fedlesam_source = fedlesam_variant, fedlesam_source
        self.fedlesam_global_lr = fedlesam_global_lr
        self.control: dict[str, np.ndarray] = {}  # c of S, the mean drift of D
        self.last_update: dict[str, np.ndarray] = {}
        self._sent = ArrayRecord()
        self._next: dict[str, dict[str, np.ndarray]] = {}

    # ---------------------------------------------------------------------------------------------- to the clients
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages with the variant's further tensors."""
        self._sent = arrays
        config["fedlesam-variant"], config["fedlesam-source"] = self.fedlesam_variant, self.fedlesam_source
        if self.fedlesam_variant != "base" or self.fedlesam_source == "server":
            config[NEEDS] = "FedLESAMMixin"
        return super().configure_train(server_round, arrays, config, grid)

    def _construct_messages(self, record: RecordDict, node_ids: list[int], message_type: str) -> Iterable[Message]:
        if message_type == _TRAIN:
            record = RecordDict({**record, **self._broadcast()})
        return super()._construct_messages(record, node_ids, message_type)

    def _broadcast(self) -> dict[str, ArrayRecord]:
        further = {}
        if self.fedlesam_source == "server" and self.last_update:
            further["global-update"] = self.last_update
        if self.fedlesam_variant == "S" and self.control:
            further["control"] = self.control
        return {key: ArrayRecord({n: Array(a) for n, a in arrays.items()}) for key, arrays in further.items()}

    # ---------------------------------------------------------------------------------------------- from the clients
    def further_layouts(self, reply: RecordDict, layout: Layout) -> dict[str, Layout]:
        """S has the change of a client's control variate in every reply."""
        if self.fedlesam_variant != "S":
            return {}
        buffers = self._buffers_in([reply])
        return {"control": {name: one for name, one in layout.items() if name not in buffers}}

    def _buffers_in(self, replies: Iterable[RecordDict]) -> frozenset[str]:
        if self.buffers is not None:
            return self.buffers
        return frozenset(name for reply in replies for name in _buffers_of(reply))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next global model; what else it changes counts once `accept` is called."""
        replies, self._next = list(replies), {}  # what a round that was not accepted has left counts for nothing
        changes = [_taken_out(reply, "control") for reply in replies] if self.fedlesam_variant == "S" else []
        buffers = self._buffers_in([reply.content for reply in replies])
        models = [next(iter(reply.content.array_records.values())) for reply in replies]
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None:
            return None, metrics
        names = [name for name in self._sent if name not in buffers]
        before = _tensors(self._sent, names)
        if self.fedlesam_variant != "base" or self.fedlesam_global_lr != 1:
            updates = [[w - w_t for w, w_t in zip(_tensors(one, names), before, strict=True)] for one in models]
            after = self._after(names, before, updates)
            arrays = ArrayRecord({**arrays, **_record(names, after)})
        if changes:
            self._next["control"] = self._with_changes(names, before, [_tensors(one, names) for one in changes])
        if self.fedlesam_source == "server":
            after = _tensors(arrays, names)
            self._next["last_update"] = _arrays(names, [w - w_t for w, w_t in zip(after, before, strict=True)])
        return arrays, metrics

    def _after(self, names: list[str], before: list[Tensor], updates: list[list[Tensor]]) -> list[Tensor]:
        drift = None
        if self.fedlesam_variant == "D":
            self._next["control"] = self._with_changes(names, before, updates)
            drift = [torch.from_numpy(self._next["control"][name]) for name in names]
        return server_update(before, updates, global_lr=self.fedlesam_global_lr, control=drift)[0]

    def _with_changes(
        self, names: list[str], like: list[Tensor], changes: list[list[Tensor]]
    ) -> dict[str, np.ndarray]:
        """The mean of all clients' controls, with what has changed of some."""
        if self.control:
            control = [torch.from_numpy(self.control[name]) for name in names]
        else:
            control = [torch.zeros_like(tensor) for tensor in like]
        return _arrays(names, global_control_update(control, changes, num_clients=self.ledger.num_clients))

    def check_within(self, outer: Any) -> None:
        """Refuse to be wrapped where this strategy has to know of the clients' own updates.

        Raises:
            ValueError: naming both.
        """
        for name, found, allowed in (
            ("fedlesam_variant", self.fedlesam_variant, "base"),
            ("fedlesam_source", self.fedlesam_source, "client"),
        ):
            if found != allowed:
                raise ValueError(
                    f"{name}: found {found!r} within {type(outer).__name__}, allowed is {allowed!r}: what comes of "
                    "clipped or noisy updates is not what clients and server reckon with"
                )

    def accept(self) -> None:
        """A round's aggregate is the global model: what came with it counts, too."""
        for name, value in self._next.items():
            setattr(self, name, value)
        self._next = {}


class FedLESAM(GuardedMixin, VariantUpdates):
    """Flower's FedAvg for clients that train with `FedLESAMMixin`.

    - `"base"`: Flower's own weighted mean. With `fedlesam_global_lr` other than 1, the mean of the clients' updates,
      each counted once, times that rate.
    - `"S"` (SCAFFOLD): sends c, the mean of all clients' control variates, and adds to it what the clients of a round
      say has changed of theirs, over the number of all clients.
    - `"D"` (FedDyn): adds the mean of all clients' drifts to the mean of a round's models.

    Statistics of BatchNorm and the like are Flower's weighted mean in all variants. Variants S and D, and
    `fedlesam_source="server"`, need all clients to be counted: `num-partitions` in the nodes' config, or as many as
    were ever connected.

    Args:
        fedlesam_variant: that of the clients.
        fedlesam_source: `"server"` sends every client the last change of the global model, one more model per client
            and round; `"client"` lets it compare with the last one it received.
        fedlesam_global_lr: eta_g.
        seed, max_examples_ratio: of `GuardedMixin`.
        others: Flower's.

    Source: Fan et al., "Locally Estimated Global Perturbations are Better than Local Perturbations for Federated
    Sharpness-aware Minimization" (ICML 2024, arXiv:2405.18890).
    """


def _taken_out(reply: Message, key: str) -> ArrayRecord:
    record = reply.content.array_records[key]
    del reply.content[key]
    return record


def _buffers_of(reply: RecordDict) -> set[str]:
    names = passport_of(reply).get("buffers")
    return set(names) if isinstance(names, list) else set()


def _tensors(record: Mapping[str, Array], names: list[str]) -> list[Tensor]:
    return [torch.from_numpy(np.array(record[name].numpy())) for name in names]


def _arrays(names: list[str], tensors: list[Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def _record(names: list[str], tensors: list[Tensor]) -> dict[str, Array]:
    return {name: Array(array) for name, array in _arrays(names, tensors).items()}
