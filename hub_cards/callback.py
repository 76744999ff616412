"""Collects what a card says while a Trainer runs."""

import dataclasses
import os
import time
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modelcard import extract_hyperparameters_from_trainer

from hf_ext._environment import hardware, versions
from hf_ext.hub_cards.card import MethodCard, Result, loss_entries, loss_names
from hf_ext.hub_cards.create import create_card
from hf_ext.hub_cards.methods import METHODS

#: where the facts lie in `trainer_state.json`, so that a resumed run goes on with them
_KEY = "hf_ext_card"
_NO_RESULTS = ("runtime", "per_second", "epoch", "preparation_time", "num_input_tokens_seen")


class CardCallback(TrainerCallback):
    """For any Trainer: `Trainer(..., callbacks=[card := CardCallback("mola")])`, later `card.create_card(folder)`.

    Facts: the data's size and fingerprint, hyper-parameters with the methods' own, loss terms, the last evaluation
    (with the parts of the data that `add_groups` names), training time over all resumptions, hardware, versions.
    Trainers with a `MethodMixin` bring one along, as `trainer.card`.

    Args:
        method: a key of `METHODS`.
        further_methods: keys of other methods that take part.

    Raises:
        ValueError: an unknown method.
    """

    def __init__(self, method: str, further_methods: Iterable[str] = ()) -> None:
        for name in (method, *further_methods):
            if name not in METHODS:
                raise ValueError(f"method: found {name!r}, allowed are {sorted(METHODS)}")
        self.method = method
        self.further_methods = tuple(further_methods)
        self._facts: dict[str, Any] = _nothing()
        self._hyper_parameters: dict[str, Any] = {}
        self._base: dict[str, str] = {}
        self._processes = 1
        self._log_history: list[dict[str, float]] = []
        self._started = 0.0

    # ---------------------------------------------------------------------------------------------- collecting
    def add_groups(self, names: Mapping[str, tuple[str, str]]) -> None:
        """Name evaluation metrics of a part of the data: `{"eval_task_1_accuracy": ("task 1", "accuracy")}`."""
        self._facts["groups"] |= {key: list(value) for key, value in names.items()}

    def add_fact(self, name: str, value: Any, metrics: Iterable[str] = ()) -> None:
        """Add to `MethodCard.facts`, from which the method's pictures are drawn, instead of showing these metrics."""
        self._facts["method"][name] = value
        self._facts["hidden"] = sorted({*self._facts["hidden"], *metrics})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # transformers' ExportableState would fail to resume from checkpoints made without this callback
        kept: Any = state.stateful_callbacks  # a dict once the state is made
        self._facts = _nothing() | kept.get(_KEY, {})
        kept[_KEY] = self._facts
        self._look(args, state, kwargs)
        self._facts["data"]["train"] = _describe(kwargs.get("train_dataloader"))
        self._started = time.perf_counter() - self._facts["seconds"]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._facts["seconds"] = time.perf_counter() - self._started

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._look(args, state, kwargs)
        self._facts["data"]["evaluation"] = _describe(kwargs.get("eval_dataloader"))
        numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}
        self._facts["evaluation"] |= numbers

    def _look(self, args: TrainingArguments, state: TrainerState, kwargs: Mapping[str, Any]) -> None:
        self._log_history = state.log_history
        self._processes = args.world_size
        self._hyper_parameters = _hyper_parameters(args)
        self._base = _base_of(kwargs.get("model"))

    # ---------------------------------------------------------------------------------------------- the card
    def card_facts(self) -> dict[str, Any]:
        """Arguments of `MethodCard` that the run has shown so far."""
        losses = loss_entries(self._log_history)
        kept = {"step", *loss_names(losses)}
        data = self._facts["data"]
        environment = {"training time": _duration(self._facts["seconds"])} if self._facts["seconds"] else {}
        return {
            **self._base,
            "further_methods": self.further_methods,
            "dataset": data.get("train", {}).get("name") or "unknown",
            "data": data,
            "hyper_parameters": self._hyper_parameters,
            "results": self._results(),
            "log_history": [{name: entry[name] for name in kept if name in entry} for entry in losses],
            "facts": self._facts["method"],
            "environment": {
                **environment,
                "processes": self._processes,
                "hardware": hardware(),
                **versions(),
            },
        }

    def create_card(self, folder: str | os.PathLike[str], **facts: Any) -> MethodCard:
        """Write the card of the saved model; `facts` are further arguments of `MethodCard` and win."""
        return create_card(folder, self.method, **(self.card_facts() | facts))

    def _results(self) -> list[Result]:
        title, groups = METHODS[self.method].title, self._facts["groups"]
        results = []
        for key, value in self._facts["evaluation"].items():
            if key in self._facts["hidden"] or key.endswith(_NO_RESULTS):
                continue
            group, metric = groups.get(key, ("", key.removeprefix("eval_")))
            results.append(Result(title, metric, value, is_method=True, group=group))
        return results


def _nothing() -> dict[str, Any]:
    return {"seconds": 0.0, "data": {}, "evaluation": {}, "groups": {}, "hidden": [], "method": {}}


def _describe(dataloader: Any) -> dict[str, Any]:
    """Name, number of rows and fingerprint of a data set, as far as it has them."""
    dataset: Any = getattr(dataloader, "dataset", None)
    rows = len(dataset) if hasattr(dataset, "__len__") else None
    return {
        "name": getattr(dataset, "builder_name", None),
        "rows": rows,
        "fingerprint": getattr(dataset, "_fingerprint", None),
    }


def _hyper_parameters(args: TrainingArguments) -> dict[str, Any]:
    """Those that Trainer's own cards list, and the methods' own."""
    own = tuple(f"{name}_" for name in METHODS)
    fields = [field.name for field in dataclasses.fields(args) if field.name.startswith(own)]
    listed: dict[str, Any] = extract_hyperparameters_from_trainer(SimpleNamespace(args=args))
    if args.optim:
        listed["optimizer"] = getattr(args.optim, "value", args.optim)  # not a sentence
    return listed | {name: getattr(args, name) for name in fields}


def _base_of(model: Any) -> dict[str, str]:
    """The model that was trained on from, by name; an adapter's own configuration says more than a wrapped model."""
    while hasattr(model, "module"):  # DDP's and compile's wrappers
        model = model.module
    name = None if hasattr(model, "get_base_model") else getattr(model, "name_or_path", None)
    return {"base_model": name} if name else {}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(hours or minutes)
    return " ".join([*parts, f"{rest} s" if parts else f"{seconds:.2g} s"])
