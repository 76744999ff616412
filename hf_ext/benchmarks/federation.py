"""What a federation costs besides its steps: `python -m hf_ext.benchmarks.federation` prints bytes and memory.

Bytes are those of the arrays in Flower's messages, per client and round; memory is that of all processes of a
simulation together, of a network of 5 million weights at 100 clients that train two at a time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from datasets import Dataset
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from hf_ext._reports import markdown_table
from hf_ext.benchmarks.memory import peak_memory
from hf_ext.benchmarks.training import images, vit
from hf_ext.models import replace_classifier
from hf_ext.trainers.federated import (
    FedGELA,
    FedGELAConfig,
    FedGELATrainer,
    FedLESAM,
    FedLESAMConfig,
    FedLESAMTrainer,
    client_app,
    server_app,
    simulate,
)

CLASSES, ROWS = 10, 8
Run = Callable[[Any, Any, int], object]


def _simulated(server: Any, client: Any, clients: int) -> object:
    return simulate(server, client, num_clients=clients, cpus=2)


def _with_lora(quick: bool) -> Any:
    model = vit(quick, num_labels=CLASSES)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]))


def _with_simplex(quick: bool) -> Any:
    return replace_classifier(vit(quick, num_labels=CLASSES))


def _lesam(**options: Any) -> dict[str, Any]:
    return {"trainer": FedLESAMTrainer, "arguments": FedLESAMConfig, "strategy": FedLESAM, "options": options}


#: by name: what differs from FedAvg
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "FedAvg": {},
    "FedLESAM": _lesam(),
    "FedLESAM, the server sends the change": _lesam(fedlesam_source="server"),
    "FedLESAM-S": _lesam(fedlesam_variant="S"),
    "FedLESAM-D": _lesam(fedlesam_variant="D"),
    "FedGELA": {
        "trainer": FedGELATrainer,
        "arguments": FedGELAConfig,
        "strategy": FedGELA,
        "model": _with_simplex,
    },
    "FedAvg of LoRA": {"model": _with_lora},
}


def _factory(setting: Mapping[str, Any], quick: bool, folder: str) -> Callable[[Context], Trainer]:
    def make(context: Context) -> Trainer:
        torch.manual_seed(0)
        batch = {name: values for name, values in images(ROWS, classes=CLASSES).items() if "ids" not in name}
        rows = Dataset.from_dict({name: values.tolist() for name, values in batch.items()}).with_format("torch")
        arguments = setting.get("arguments", TrainingArguments)(
            output_dir=folder,
            per_device_train_batch_size=ROWS,
            max_steps=2,
            optim="sgd",
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **setting.get("options", {}),
        )
        model = setting.get("model", lambda quick: vit(quick, num_labels=CLASSES))(quick)
        return setting.get("trainer", Trainer)(model=model, args=arguments, train_dataset=rows)

    return make


def _counting(kind: type[Strategy], counts: dict[str, int]) -> type[Strategy]:
    """A strategy that notes the bytes of the last round's arrays, per client, each way."""

    class Counting(kind):  # type: ignore[misc, valid-type]
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            messages = list(super().configure_train(server_round, arrays, config, grid))
            counts["down"] = max(map(_bytes, messages))
            return messages

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            counts["up"] = max(map(_bytes, replies))
            return super().aggregate_train(server_round, replies)

    return Counting


def _always(strategy: Strategy) -> Callable[[Context], Strategy]:
    return lambda context: strategy


def _bytes(message: Message) -> int:
    return sum(record.count_bytes() for record in message.content.array_records.values())


def bytes_table(run: Run = _simulated, *, quick: bool = False) -> str:
    """Bytes per client and round, each way, of the second of two rounds, as a markdown table."""
    lines, whole = [], 0
    for name, setting in SETTINGS.items():
        counts: dict[str, int] = {}
        kind = _counting(setting.get("strategy", FedAvg), counts)
        with tempfile.TemporaryDirectory() as folder:
            make = _factory(setting, quick, folder)
            settings: dict[str, Any] = {"fraction_evaluate": 0.0, **setting.get("options", {})}
            strategy = kind(**settings)
            run(server_app(_always(strategy), make, num_rounds=2), client_app(make), 2)
        whole = whole or counts["down"]
        cells = [f"{counts[way]:,} ({counts[way] / whole:.3f})" for way in ("down", "up")]
        lines.append([name, *cells])
    return markdown_table(["per client and round", "bytes to it (of FedAvg's)", "bytes from it (of FedAvg's)"], lines)


def memory_of(clients: int, rounds: int = 2, *, quick: bool = False) -> tuple[float, float]:
    """GiB that all processes of a simulation held at most, and the seconds it took."""
    start = time.perf_counter()
    with peak_memory() as peak, tempfile.TemporaryDirectory() as folder:
        make = _factory(SETTINGS["FedLESAM"], quick, folder)
        server = server_app(lambda _: FedLESAM(fraction_evaluate=0.0), make, num_rounds=rounds)
        _simulated(server, client_app(make), clients)
    return peak.most / 2**30, time.perf_counter() - start


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=100, help="of the simulation whose memory is measured")
    parser.add_argument("--quick", action="store_true", help="a tiny network")
    arguments = parser.parse_args()
    gibibytes, seconds = memory_of(arguments.clients, quick=arguments.quick)
    print(
        f"{arguments.clients} clients, 2 rounds: at most {gibibytes:.2f} GiB in all processes, {seconds:.0f} seconds"
    )
    print(bytes_table(quick=arguments.quick))


if __name__ == "__main__":
    main()
