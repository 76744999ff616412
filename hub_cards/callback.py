"""Collects what a card says while a Trainer runs."""

import copy
import dataclasses
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from hf_ext._environment import hardware, versions
from hf_ext._files import read_json, write_atomically
from hf_ext._models import unwrapped
from hf_ext.hub_cards.card import MethodCard, Result, names_of, training_entries
from hf_ext.hub_cards.create import create_card
from hf_ext.hub_cards.methods import METHODS
from hf_ext.hub_cards.tasks import base_options

#: where the facts lie in a checkpoint, so that a resumed run goes on with them
FACTS_IN_CHECKPOINT = "card_facts.json"
#: where earlier versions put them in `trainer_state.json`
_EARLIER_KEY = "hf_ext_card"
_NO_RESULTS = ("runtime", "per_second", "epoch", "preparation_time", "num_input_tokens_seen")


class CardCallback(TrainerCallback):
    """For any Trainer: `Trainer(..., callbacks=[card := CardCallback("mola")])`, later `card.create_card(folder)`.

    Facts: the data's size and fingerprint, hyper-parameters with the methods' own, loss terms, the last evaluation of
    every data set (with the parts that `add_groups` names), training time over all resumptions, hardware, versions.
    With `load_best_model_at_end` the evaluation is the best model's. A run that only evaluates says nothing of the
    training. Trainers with a `MethodMixin` bring one along, as `trainer.card`.

    The facts are saved in checkpoints, as `card_facts.json`. Trainer does not tell a callback what is resumed from: a
    plain one's goes on with the facts if that is `args.resume_from_checkpoint` or lies in `args.output_dir`.

    Args:
        method: a key of `METHODS`.
        further_methods: keys of other methods that take part.

    Raises:
        ValueError: an unknown method.
    """

    def __init__(self, method: str, further_methods: Iterable[str] = ()) -> None:
        self.method = method
        self.further_methods = tuple(names_of("further_methods", further_methods))
        for name in (method, *self.further_methods):
            if name not in METHODS:
                raise ValueError(f"method: found {name!r}, allowed are {sorted(METHODS)}")
        self._facts: dict[str, Any] = _no_facts()
        self._run: dict[str, Any] = {}
        self._loss_terms: dict[str, None] = {}  # names, in order
        self._log_history: list[dict[str, float]] = []
        self._federation: dict[str, Any] = {}
        self._at_clients: list[Result] = []
        self._baselines: dict[str, dict[str, float]] = {}
        self._started = 0.0
        #: the checkpoint that training resumes from, where a Trainer says so
        self.resumed_from: str | None = None

    @property
    def step(self) -> int:
        """Of the training, whose weights the model has: the last one, or the best one that was loaded again."""
        return int(self._facts["step"])

    # ---------------------------------------------------------------------------------------------- collecting
    def add_groups(self, names: Mapping[str, tuple[str, str]]) -> None:
        """Name evaluation metrics of a part of the data: `{"eval_task_1_accuracy": ("task 1", "accuracy")}`."""
        self._facts["groups"] |= {key: list(value) for key, value in names.items()}

    def add_loss_terms(self, names: Iterable[str]) -> None:
        """Name the terms of the training loss, as they are logged with "loss": `["twd_loss"]`.

        The card shows these and no other value that is logged. They hold for every training of this Trainer, and a
        checkpoint has them.
        """
        self._loss_terms |= dict.fromkeys(names_of("names", names))
        self._facts["loss_terms"] = list(dict.fromkeys([*self._facts["loss_terms"], *self._loss_terms]))

    def add_fact(self, name: str, value: Any, metrics: Iterable[str] = ()) -> None:
        """Add to `MethodCard.facts`, from which the method's pictures are drawn, instead of showing these metrics."""
        self._facts["method"][name] = value
        self._facts["hidden"] = sorted({*self._facts["hidden"], *names_of("metrics", metrics)})

    def describe_run(self, args: TrainingArguments, model: Any) -> None:
        """Take in what is known of a run before it trains; also of one that trains elsewhere, as a federation does."""
        self._run = {
            **_model_facts(model),
            "hyper_parameters": _hyper_parameters(args),
            "environment": {"processes": args.world_size, "hardware": hardware(), **versions()},
        }

    def add_federation(self, facts: Mapping[str, Any], results: Iterable[Result] = ()) -> None:
        """Say how clients have trained the model, and what they measured."""
        self._federation, self._at_clients = dict(facts), list(results)

    def add_baseline(self, system: str, metrics: Mapping[str, float]) -> None:
        """Show another system's metrics of the last evaluation beside the model's: `{"eval_accuracy": 0.5}`."""
        self._baselines[system] = dict(metrics)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._facts = _no_facts() | self._saved_facts(args, state)
        self.add_loss_terms(())  # those that were named before
        dataset = _dataset_of(kwargs.get("train_dataloader"))
        name = _name_of(dataset)
        self._facts["train"] = _describe(dataset)
        self.describe_run(args, kwargs.get("model"))
        self._run |= {"dataset": name} if name else {}
        self._log_history = state.log_history
        self._started = time.perf_counter() - self._facts["seconds"]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._facts["seconds"] = time.perf_counter() - self._started
        self._facts["step"] = state.global_step

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}
        self._facts["evaluations"][_prefix_of(numbers)] = {
            "step": self._facts["step"],
            "data": _describe(_dataset_of(kwargs.get("eval_dataloader"))),
            "metrics": numbers,
        }
        # which step is the best shows only after its evaluation
        best = {step: seen for step, seen in self._facts["seen"].items() if step == str(state.best_global_step)}
        seen = {name: copy.deepcopy(self._facts[name]) for name in ("evaluations", "method")}
        self._facts["seen"] = best | {str(state.global_step): seen}

    # ---------------------------------------------------------------------------------------------- checkpoints
    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save the facts in a checkpoint, of which `trainer_state.json` then is the same for every way to it."""
        os.makedirs(folder, exist_ok=True)
        write_atomically(Path(folder) / FACTS_IN_CHECKPOINT, json.dumps(self._facts, indent=1))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = _checkpoint_of(args, state)
        if args.should_save and folder.is_dir():  # trials have folders of their own, which a plain Trainer keeps quiet
            self.save(folder)

    def _saved_facts(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        """Those of the checkpoint that is resumed from, if any."""
        saved: Any = state.stateful_callbacks  # a dict once the state is made
        earlier: dict[str, Any] = saved.pop(_EARLIER_KEY, {})
        if not state.global_step:
            return {}
        guesses = (args.resume_from_checkpoint, _checkpoint_of(args, state))
        for folder in (self.resumed_from,) if self.resumed_from else guesses:
            path = Path(str(folder)) / FACTS_IN_CHECKPOINT
            if path.is_file():
                return read_json(path, "resume_from_checkpoint")
        return earlier

    # ---------------------------------------------------------------------------------------------- the end
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._log_history = state.log_history
        if args.load_best_model_at_end and state.best_model_checkpoint:  # Trainer has loaded it by now
            self._facts["step"] = state.best_global_step
            for name, facts in self._facts["seen"].get(str(state.best_global_step), {}).items():
                self._facts[name] |= facts

    # ---------------------------------------------------------------------------------------------- the card
    def card_facts(self) -> dict[str, Any]:
        """Arguments of `MethodCard` that the run has shown so far; without `log_history` if it has not trained."""
        train, evaluations = self._facts["train"], self._facts["evaluations"]
        facts: dict[str, Any] = {"further_methods": self.further_methods, **self._run, "data": {}}
        if train is not None:
            shown = ("step", "loss", *self._facts["loss_terms"])
            entries = training_entries(self._log_history)
            facts["log_history"] = [{name: entry[name] for name in shown if name in entry} for entry in entries]
            facts["loss_terms"] = self._facts["loss_terms"]
            facts["data"]["train"] = train
            if self._facts["seconds"]:
                facts["environment"] = {"training time": _duration(self._facts["seconds"]), **facts["environment"]}
        if train is not None or evaluations:
            facts |= {"results": self._results(), "facts": self._facts["method"]}
        if self._federation:
            facts["federation"] = self._federation
            facts["results"] = [*facts.get("results", ()), *self._at_clients]
        facts["data"] |= {_part_of(prefix) or "evaluation": seen["data"] for prefix, seen in evaluations.items()}
        return facts

    def create_card(self, folder: str | os.PathLike[str], **facts: Any) -> MethodCard:
        """Write the card of the saved model; `facts` are further arguments of `hub_cards.create_card` and win."""
        return create_card(folder, self.method, run=self.card_facts(), **facts)

    def _results(self) -> list[Result]:
        """The baselines', then the model's."""
        title = METHODS[self.method].title
        results = [row for name, metrics in self._baselines.items() for row in self._rows(name, "eval", metrics)]
        for prefix, seen in self._facts["evaluations"].items():
            step = None if seen["step"] == self._facts["step"] else seen["step"]
            results += self._rows(title, prefix, seen["metrics"], is_method=True, step=step)
        return results

    def _rows(self, system: str, prefix: str, metrics: Mapping[str, float], **facts: Any) -> Iterator[Result]:
        for key, value in metrics.items():
            if key in self._facts["hidden"] or key.endswith(_NO_RESULTS):
                continue
            group, metric = self._facts["groups"].get(key, ("", key.removeprefix(f"{prefix}_")))
            group = ", ".join(filter(None, (_part_of(prefix), group)))
            yield Result(system, metric, value, group=group, **facts)


def _checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _no_facts() -> dict[str, Any]:
    """`step`: of the training, whose weights the model has. `seen`: the last and the best step's evaluations."""
    facts: dict[str, Any] = {"seconds": 0.0, "step": 0, "train": None}
    return facts | {"evaluations": {}, "method": {}, "groups": {}, "hidden": [], "seen": {}, "loss_terms": []}


def _prefix_of(metrics: Mapping[str, float]) -> str:
    """What the names of an evaluation's metrics begin with: "eval", or "eval_photo" for one set of several."""
    return next((name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")), "eval")


def _part_of(prefix: str) -> str:
    """The name of the data set behind a prefix, "" for the only one."""
    return "" if prefix == "eval" else prefix.removeprefix("eval_")


def _dataset_of(dataloader: Any) -> Any:
    """The data behind a loader; of a stream, not the process's share that accelerate makes of it."""
    from accelerate.data_loader import IterableDatasetShard

    dataset = getattr(dataloader, "dataset", None)
    return dataset.dataset if isinstance(dataset, IterableDatasetShard) else dataset


def _describe(dataset: Any) -> dict[str, Any]:
    """What kind of data set it is, its number of rows, columns and fingerprint, as far as it has them.

    A data set says in `described_as` what it is where the name of its class does not.
    """
    kind, words = type(dataset), getattr(dataset, "described_as", None)
    columns = getattr(dataset, "column_names", None)
    named = None if dataset is None else f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
    return {
        "kind": words if isinstance(words, str) else named,
        "rows": len(dataset) if has_length(dataset) else None,
        "columns": columns if isinstance(columns, list) else None,
        "fingerprint": getattr(dataset, "_fingerprint", None),
    }


def _name_of(dataset: Any) -> str | None:
    """Hub id of a data set, or the name of what built it; "csv" and the like name none."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    addresses = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    matches = [re.match(r"hf://datasets/(.+?)@", address) for address in addresses]
    ids = [match[1] for match in matches if match]
    name: str | None = getattr(dataset, "builder_name", None)
    return ids[0] if ids else None if name in _PACKAGED_DATASETS_MODULES else name


def _hyper_parameters(args: TrainingArguments) -> dict[str, Any]:
    """Those that Trainer's own cards list, and the methods' own that are set."""
    own = tuple(f"{name}_" for name in METHODS)
    fields = [field.name for field in dataclasses.fields(args) if field.name.startswith(own)]
    listed: dict[str, Any] = extract_hyperparameters_from_trainer(SimpleNamespace(args=args))
    if args.optim:
        listed["optimizer"] = getattr(args.optim, "value", args.optim)  # not a sentence
    return listed | {name: getattr(args, name) for name in fields if getattr(args, name) is not None}


def _model_facts(model: Any) -> dict[str, Any]:
    """The model that was trained on from: its name, where no adapter's configuration has it, and its head."""
    if model is None:
        return {}
    model = unwrapped(model)
    name = None if hasattr(model, "get_base_model") else getattr(model, "name_or_path", None)
    return {"base_options": base_options(model), **({"base_model": name} if name else {})}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(hours or minutes)
    return " ".join([*parts, f"{rest} s" if parts else f"{seconds:.2g} s"])
