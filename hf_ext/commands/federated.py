"""What `hf-ext train METHOD` of federated methods share: a federation in this machine, of any model and data."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from datasets import Dataset
from rich.console import Console
from rich.progress import Progress
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_ext._arguments import Bounds, Count, Positive, Share
from hf_ext._files import write_atomically
from hf_ext._runs import progress_bars, quiet
from hf_ext.commands.loading import DataArguments, Loaded, ModelArguments
from hf_ext.commands.lora import LoraArguments
from hf_ext.commands.parsing import parse
from hf_ext.commands.training import check_counts, leave, new_trainer, options_of, resumed_from, seeded
from hf_ext.data import Partition, classes_partition, dirichlet_partition, iid_partition, natural_partition
from hf_ext.trainers.arguments import MethodArguments, option
from hf_ext.trainers.federated import client_app, server_app, simulate

#: where clients remember what a restarted federation asks for; hidden, so never sent to the Hub
STATE = ".clients"
_LABELS = "labels"  # as `loading` calls them
#: what a client's Trainer does not do, whatever the server's does
_AT_CLIENTS: dict[str, Any] = {
    "push_to_hub": False,
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "resume_from_checkpoint": None,
}


@dataclass
class FederationArguments(MethodArguments):
    """Which clients there are, and how they take part."""

    num_clients: Count = option(10, "Clients that share the training rows; by a column as many as it has values.")
    num_rounds: Count = option(10, "Rounds in all. In each a client trains for num_train_epochs or max_steps.")
    partition: Literal["dirichlet", "classes", "iid", "column"] = option(
        "dirichlet",
        "How rows are divided, drawn by seed: 'dirichlet', every class in proportions of its own; 'classes', "
        "classes_per_client each; 'iid'; 'column', a client for each value of partition_column.",
    )
    dirichlet_alpha: Positive = option(0.3, "Of 'dirichlet': the smaller, the more clients differ.")
    classes_per_client: Count = option(2, "Of 'classes': how many classes a client holds.")
    partition_column: str | None = option(None, "Of 'column': a column such as the writer or the hospital.")
    fraction_train: Share = option(0.5, "Share of the clients that train in each round.")
    client_test_share: Annotated[float, Bounds(at_least=0, below=1)] = option(
        0.0, "Share of its rows that each client tests the global model on, after every round; 0: no tests at clients."
    )
    learning_rate_decay: Share = option(1.0, "What the learning rate is multiplied by in every round but the first.")
    cpus_per_client: Count = option(1, "Cores for each client that trains at a time.")
    in_process: bool = option(
        False, "Clients one after the other in this process, which starts at once; by default processes of Ray."
    )
    save_partition: bool = option(
        False, "Write who has which rows, and a picture of classes and clients onto the card: it shows clients' data."
    )

    def check_options(self) -> None:
        super().check_options()
        if (self.partition == "column") != (self.partition_column is not None):
            raise ValueError(
                f"partition_column: found {self.partition_column!r} with partition {self.partition!r}, allowed is a "
                "column with partition 'column', and none with any other"
            )

    def divided(self, rows: Dataset, seed: int) -> Partition:
        """Who has which rows.

        Raises:
            ValueError: rows that cannot be divided so, or no such column.
        """
        if self.partition == "iid":
            return iid_partition(len(rows), self.num_clients, seed=seed)
        if self.partition == "classes":
            each = self.classes_per_client
            return classes_partition(rows, self.num_clients, classes_per_client=each, seed=seed, column=_LABELS)
        if self.partition == "column":
            if self.partition_column not in rows.column_names:
                raise ValueError(f"partition_column: found {self.partition_column!r}, allowed are {rows.column_names}")
            return natural_partition(rows, seed=seed, column=self.partition_column)
        least = 2 if self.client_test_share else 1
        return dirichlet_partition(
            rows, self.num_clients, alpha=self.dirichlet_alpha, seed=seed, min_size=least, column=_LABELS
        )

    @property
    def told(self) -> str:
        """How, in words."""
        return {
            "dirichlet": f"Dirichlet({self.dirichlet_alpha:g}) over classes",
            "classes": f"{self.classes_per_client} classes each",
            "iid": "at random",
            "column": f"by the column {self.partition_column!r}",
        }[self.partition]

    def at_server(self, clients: int) -> dict[str, Any]:
        """Arguments of Flower's strategies: as many clients as there are have to be there."""
        evaluates = 1.0 if self.client_test_share else 0.0
        few = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": clients}
        return {"fraction_train": self.fraction_train, "fraction_evaluate": evaluates, **few}


def train_federation(
    method: str,
    trainer_class: type[Trainer],
    config_class: type[TrainingArguments],
    argv: Sequence[str],
    *,
    strategy: Callable[..., Any],
    description: str,
    federation: type[FederationArguments] = FederationArguments,
    adapter: type = LoraArguments,
    check: Callable[[Any], None] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Train a model in a federation in this machine, and leave a folder as `train_method` does.

    Args:
        method, trainer_class, config_class, argv, description, adapter, check, defaults: as for `train_method`.
        strategy: from the federation's options, the config and Flower's arguments to a strategy.
        federation: options of clients and server.

    Raises:
        ValueError: options that do not work together, before anything is loaded.
    """
    types = (ModelArguments, DataArguments, federation, adapter, config_class)
    defaults = {"dataset": "digits", "num_train_epochs": 1.0, "lr_scheduler_type": "constant", **(defaults or {})}
    chosen, data, clients, options, args = parse(
        types, argv, prog=f"hf-ext train {method}", description=description, defaults=defaults
    )
    check_counts(args)
    if args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end: found True, allowed is False: a federation leaves the last round's model"
        )
    if check is not None:
        check(args)
    loaded = seeded(args, chosen, data)
    rows = loaded.data["train"]
    divided = clients.divided(rows, args.seed)
    factory = Clients(trainer_class, config_class, args, (chosen, data, options), clients, divided)
    pristine = options.adapted(loaded.model)
    factory.keep(dataclasses.replace(loaded, model=copy.deepcopy(pristine)))
    trainer = new_trainer(trainer_class, pristine, args, loaded, train_dataset=None)
    quiet(trainer)
    trainer.data_remark = " ".join(
        filter(None, [loaded.remark, f"{len(rows)} rows of {len(divided)} clients: {clients.told}."])
    )
    if clients.save_partition:
        note_partition(trainer, divided, rows)
    told = {"learning-rate-decay": clients.learning_rate_decay} if clients.learning_rate_decay != 1 else {}
    server = server_app(
        lambda _: strategy(clients, args, **clients.at_server(len(divided))),
        lambda _: trainer,
        num_rounds=clients.num_rounds,
        output_dir=args.output_dir,
        train_config=told,
        resume_from_checkpoint=resumed_from(args) or False,
    )
    with progress_bars(Console(stderr=True)) as bars:
        trainer.add_callback(RoundBar(bars, "rounds", clients.num_rounds))
        simulate(
            server,
            client_app(factory, state_dir=Path(args.output_dir) / STATE),
            num_clients=len(divided),
            cpus_per_client=clients.cpus_per_client,
            in_process=clients.in_process,
        )
        trainer.pop_callback(RoundBar)
    leave(trainer, data.dataset)


def note_partition(trainer: Any, divided: Partition, rows: Dataset) -> None:
    """Leave who has which rows in the folder, and the counts of classes for the card's picture."""
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "partition.json", json.dumps(divided.to_dict()))
    counts = divided.counts(rows, column=_LABELS).tolist()
    classes = list(rows.features[_LABELS].names)
    trainer.card.add_fact("partition", {"counts": counts, "clients": list(divided.clients), "classes": classes})


#: what this process has loaded last, by what was asked for: a client makes a Trainer of it in every round
_LOADED: dict[bytes, Loaded] = {}


class Clients:
    """The clients' `trainer_factory`: it carries options, no data, so it travels to other processes in no time.

    Each process loads model and data once.
    """

    def __init__(
        self,
        trainer_class: type[Trainer],
        config_class: type[TrainingArguments],
        args: TrainingArguments,
        options: tuple[Any, Any, Any],
        federation: FederationArguments,
        divided: Partition,
    ) -> None:
        settings = options_of(config_class, args) | _AT_CLIENTS
        self.trainer_class, self.config_class, self.settings = trainer_class, config_class, settings
        self.options = options
        self.tested: Partition | None = None
        self.trained = divided
        if federation.client_test_share:
            self.trained, self.tested = divided.split(federation.client_test_share, seed=args.seed)

    def keep(self, loaded: Loaded) -> None:
        """Have what is loaded already."""
        _LOADED.clear()
        _LOADED[self._asked] = loaded

    @property
    def _asked(self) -> bytes:
        return pickle.dumps((self.options, self.settings["seed"]))

    def __call__(self, context: Any) -> Any:
        number = int(context.node_config["partition-id"])
        args = self.config_class(**self.settings)
        if self._asked not in _LOADED:
            chosen, data, adapter = self.options
            loaded = seeded(args, chosen, data)
            self.keep(dataclasses.replace(loaded, model=adapter.adapted(loaded.model)))
        loaded = _LOADED[self._asked]
        rows = loaded.data["train"]
        own = {
            "train_dataset": self.trained.client(rows, number),
            "eval_dataset": None if self.tested is None else self.tested.client(rows, number),
        }
        return quiet(new_trainer(self.trainer_class, copy.deepcopy(loaded.model), args, loaded, **own))


class RoundBar(TrainerCallback):
    """Shows a federation's rounds, of which the server evaluates each."""

    def __init__(self, bars: Progress, name: str, rounds: int) -> None:
        self.bars, self.task = bars, bars.add_task(name, total=rounds)
        self.evaluated = -1  # once before the first round

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated += 1
        self.bars.update(self.task, completed=self.evaluated)
