"""What a client keeps from one round to the next: in Flower's context, or in a folder, which outlives the run."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from hf_ext._files import is_regular, write_atomically
from hf_ext.trainers.federated.flower import ConfigRecord, Context
from hf_ext.trainers.federated.rounds import Tensors

_KEY = "hf_ext"


class ClientMemory:
    """A client's entries of the rounds it took part in.

    A server that was stopped in the middle of a round repeats it; a reply may have been lost or refused. So entries
    are kept by round, those of the round at hand are not looked at, and of two kinds of entries one goes by the last
    round whose reply the server took: that round's and the newest are kept.

    Args:
        context: of the client's node.
        folder: where the memory lies; None for `context.state`, which lasts as long as the run.
        client: id of the client.
        federation: a memory of another federation counts as none.

    Raises:
        ValueError: a file that is no memory.
    """

    def __init__(self, context: Context, folder: str | os.PathLike[str] | None, client: int, federation: str) -> None:
        self._context, self._federation = context, federation
        self._path = None if folder is None else Path(folder) / f"client-{client}.safetensors"
        self._rounds = self._read()

    def recall(self, before: int, taken: int | None, committed: Collection[str]) -> dict[str, Tensors]:
        """The entries that a round begins with.

        Args:
            before: number of the round.
            taken: the last round whose reply the server took, 0 for none; None if it does not say.
            committed: entries that are worth something with that round alone.
        """
        earlier = [number for number in self._rounds if number < before]
        newest = max(earlier, default=0)
        of_round = self._rounds.get
        entries = {name: value for name, value in of_round(newest, {}).items() if name not in committed}
        last = of_round(newest if taken is None else taken, {})
        return entries | {name: value for name, value in last.items() if name in committed}

    def keep(self, number: int, taken: int | None, entries: dict[str, Tensors]) -> None:
        """Remember a round's entries, and of earlier ones what may still be asked for."""
        earlier = [one for one in self._rounds if one < number]
        wanted = {max(earlier, default=0), taken}
        self._rounds = {one: value for one, value in self._rounds.items() if one in wanted} | {number: entries}
        self._write()

    # ---------------------------------------------------------------------------------------------- bytes
    def _read(self) -> dict[int, dict[str, Tensors]]:
        if self._path is None:
            record: Any = self._context.state.config_records.get(_KEY)
            data: Any = b"" if record is None else record.get("memory", b"")
        else:
            data = self._path.read_bytes() if is_regular(self._path) else b""
        if not data:
            return {}
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            tensors = safetensors.torch.load(data)
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"state_dir: found a broken {str(self._path)!r} ({error}), allowed is none") from None
        if header.get("__metadata__", {}).get("federation") != self._federation:
            return {}
        rounds: dict[int, dict[str, dict[str, Tensor]]] = {}
        for key, tensor in tensors.items():
            number, entry, name = key.split("/", 2)
            rounds.setdefault(int(number), {}).setdefault(entry, {})[name] = tensor
        return rounds  # type: ignore[return-value]  # Mapping is covariant in its values, dict is not

    def _write(self) -> None:
        flat = {
            f"{number}/{entry}/{name}": tensor.contiguous()
            for number, entries in self._rounds.items()
            for entry, tensors in entries.items()
            for name, tensor in tensors.items()
        }
        data = safetensors.torch.save(flat, metadata={"federation": self._federation})
        if self._path is None:
            self._context.state[_KEY] = ConfigRecord({"memory": data})
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, data)
