"""A model card: facts in a dataclass, a template that words them, metadata that the Hub reads."""

import functools
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_ext._files import is_regular, write_atomically
from hf_ext.hub_cards import text
from hf_ext.hub_cards.methods import METHODS, USAGES, Method, usage_of
from hf_ext.hub_cards.tasks import auto_class_for

CARD_FILE = "README.md"
#: the data of a card that nobody has named
UNKNOWN = "unknown"
#: what stands in a snippet for a base model that only its owner can name
BASE_MODEL = "BASE_MODEL"
#: how many digits a number has before its decimals are of no use
_LARGE = 10_000
#: fields that are lists of names, and those that are mappings
_NAMES = ("further_methods", "files", "loss_terms", "tags")
_MAPPINGS = ("base_options", "data", "hyper_parameters", "federation", "facts", "environment")


@dataclass(frozen=True)
class Result:
    """One system's value of a metric: mean and standard deviation over seeds (`std=None` for a single run).

    Args:
        system: a method or a baseline.
        metric: such as "accuracy".
        mean, std, seeds: over how many runs.
        is_method: whether the value is the method's; those go into the metadata.
        group: the part of the data it is of (a task, a domain), or "" for all.
        step: of the training, where the weights it was measured with are not those of the card.
        published: False for a value of the method's that stays out of the metadata, such as that of a variant whose
            weights are not the card's.

    Raises:
        ValueError: a mean or standard deviation that is no number.
    """

    system: str
    metric: str
    mean: float
    std: float | None = None
    seeds: int = 1
    is_method: bool = False
    group: str = ""
    step: int | None = None
    published: bool = True

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            try:
                # plain numbers in place of NumPy's and of tensors, and of words such as "nan"
                object.__setattr__(self, name, None if value is None and name == "std" else float(value))
            except (TypeError, ValueError):
                raise ValueError(f"{name}: found {value!r}, allowed is a number") from None


@dataclass
class MethodCard:
    """A model card.

    Args:
        method: a key of `METHODS`.
        model_name: title and name in the metadata.
        further_methods: keys of other methods that took part.
        note: what to know of this model before all else.
        base_model: Hub id of the model it adapts, or None.
        base_options: what `from_pretrained` is told when it loads `base_model`.
        base_folder: folder of the base model within the card's own, or None.
        files: in the card's folder, of those that the methods have code for (`Method.further`).
        place: where the snippet loads the model from, a Hub id or a folder.
        dataset: name of the data, shown and put into the metadata.
        dataset_description: how they were used.
        data: facts of every split, `{"train": {"rows": 100, "fingerprint": "..."}}`.
        task: Hub task, such as "image-classification"; the Hub takes no results without one.
        auto_class: the class of transformers that loads the model, by default the task's.
        adapter: the type of peft's adapter (`peft_type`), or None for a model that is whole.
        hyper_parameters: names and values.
        federation: of a model that clients have trained: rounds, clients and the like.
        results: the tables; rows with `is_method` go into the metadata (`model-index`).
        log_history: Trainer's; of its training steps the card shows "loss" and the `loss_terms`.
        loss_terms: names, in it, of the terms that the training loss is made of.
        facts: what the method's own pictures are drawn from.
        environment: training time, hardware, versions and the like.
        plots: file names in the folder and what they show.
        usage: Python code that loads the model; by default the method's.
        example: Python code that goes on from there.
        library_name, license: as the Hub knows them.
        limitations: added to the method's own.
        command: what made the results.
        tags: added to the methods' own.

    Text is shown without control characters and marks that turn or hide text. Of names, one alone may be given as it
    is: `tags="digits"`.

    Raises:
        ValueError: an unknown method, or a list or mapping that is something else.
    """

    method: str
    model_name: str
    further_methods: Sequence[str] = ()
    note: str = ""
    base_model: str | None = None
    base_options: Mapping[str, Any] = field(default_factory=dict)
    base_folder: str | None = None
    files: Sequence[str] = ()
    place: str = "."
    dataset: str = UNKNOWN
    dataset_description: str = ""
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    task: str | None = None
    auto_class: str | None = None
    adapter: str | None = None
    hyper_parameters: dict[str, Any] = field(default_factory=dict)
    federation: dict[str, Any] = field(default_factory=dict)
    results: Sequence[Result] = ()
    log_history: Sequence[Mapping[str, Any]] = ()
    loss_terms: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    plots: Sequence[tuple[str, str]] = ()
    usage: str = ""
    example: str = ""
    library_name: str | None = None
    license: str | None = None
    limitations: str = ""
    command: str = ""
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, value in checked_facts({option.name: getattr(self, option.name) for option in fields(self)}).items():
            setattr(self, name, value)
        for name in (self.method, *self.further_methods):
            if name not in METHODS:
                raise ValueError(f"method: found {name!r}, allowed are {sorted(METHODS)}")

    @property
    def about(self) -> list[Method]:
        """What is said of the methods, the card's own first."""
        return [METHODS[name] for name in dict.fromkeys((self.method, *self.further_methods))]

    @property
    def code(self) -> str:
        """The snippet: loads the model and goes on with the example; empty if there is nothing to load onto."""
        return self._with_example(self.usage or self._loading(self.base_model))

    @property
    def code_to_complete(self) -> str:
        """For an adapter whose base model has no public name: the snippet, with `BASE_MODEL` in the name's place."""
        return "" if self.code else self._with_example(self._loading(BASE_MODEL))

    def _with_example(self, usage: str) -> str:
        return "\n\n".join(part.rstrip() for part in (usage, usage and self.example) if part)

    def _loading(self, base: str | None) -> str:
        auto_class = self.auto_class or auto_class_for(self.task)
        return usage_of(self._usage, auto_class, self.place, base, self.base_options, self.base_folder)

    @property
    def _usage(self) -> str:
        """How to load what lies there: what an adapter or a model is decides, whichever method trained it."""
        if self.adapter:
            method = METHODS.get(self.adapter.lower())
            ours = "import hf_ext\n" if any(method.is_model_type for method in self.about) else ""
            return method.usage if method else ours + USAGES["peft"]
        usages = [self.about[0].usage, *(method.usage for method in self.about if method.is_model_type)]
        return next(filter(None, usages), USAGES["transformers"])

    @property
    def further_code(self) -> list[tuple[str, str]]:
        """Words and code for what else lies in a whole model's folder; they go on from `code`."""
        if self.adapter or self.usage:
            return []
        auto_class = self.auto_class or auto_class_for(self.task)
        snippets = [snippet for method in self.about for snippet in method.further if snippet.file in self.files]
        return [(part.words, usage_of(part.code, auto_class, self.place, None, {}, None)) for part in snippets]

    @property
    def overall(self) -> list[Result]:
        """Results on all of the data."""
        return [result for result in self.results if not result.group]

    @property
    def tables(self) -> list[list[Result]]:
        """These; a table for every metric of several systems, since metrics differ in unit and in size."""
        systems: dict[str, set[str]] = {}
        for row in self.overall:
            systems.setdefault(row.metric, set()).add(row.system)
        tables: dict[str, list[Result]] = {}
        for row in self.overall:
            tables.setdefault(row.metric if len(systems[row.metric]) > 1 else "", []).append(row)
        return list(tables.values())

    @property
    def by_group(self) -> tuple[list[str], list[list[Result | None]]]:
        """Results per task or domain: names of the columns, and rows with the group's results under them."""
        grouped = [result for result in self.results if result.group]
        systems, metrics = {result.system for result in grouped}, {result.metric for result in grouped}

        def column(result: Result) -> str:
            if len(systems) < 2:
                return result.metric
            return result.system if len(metrics) < 2 else f"{result.system}: {result.metric}"

        columns = list(dict.fromkeys(map(column, grouped)))
        cells = {(result.group, column(result)): result for result in grouped}
        groups = dict.fromkeys(result.group for result in grouped)
        return columns, [[cells.get((group, name)) for name in columns] for group in groups]

    @property
    def data_columns(self) -> list[str]:
        """What is known of the data's splits, besides their names."""
        further = [name for name in ("kind", "columns") if any(facts.get(name) for facts in self.data.values())]
        return ["rows", *further, "fingerprint"]

    @property
    def losses(self) -> dict[str, tuple[float, float]]:
        """First and last logged value of the training loss and of its terms."""
        curves = loss_curves(self.log_history, self.loss_terms)
        return {name: (points[0][1], points[-1][1]) for name, points in curves.items()}

    def metadata(self) -> ModelCardData:
        """The YAML header; everything in it goes through a YAML writer."""
        own = [row for row in self.results if row.is_method and row.published and math.isfinite(row.mean)]
        several = len({result.system for result in own}) > 1
        evaluations = [
            EvalResult(
                task_type=text.yaml(self.task) or "",
                dataset_type=text.yaml(self.dataset) or UNKNOWN,
                dataset_name=text.yaml(self.dataset) or UNKNOWN,
                dataset_config=text.yaml(result.group) or None,
                metric_type=text.yaml(result.metric),
                metric_value=round(result.mean, 6),
                metric_name=text.yaml(_metric_name(result, with_system=several)),
            )
            for result in own
        ]
        tags = [tag for method in self.about for tag in method.tags]
        return ModelCardData(
            model_name=text.yaml(self.model_name) or "model",
            base_model=text.yaml(self.base_model),
            library_name=text.yaml(self.library_name),
            license=text.yaml(self.license),
            pipeline_tag=text.yaml(self.task),
            tags=list(dict.fromkeys(filter(None, [*tags, *map(text.yaml, self.tags)]))),
            datasets=[self.dataset] if re.fullmatch(r"[\w.-]+/[\w.-]+", self.dataset) else None,
            eval_results=evaluations if evaluations and self.task else None,  # the Hub refuses some without a task
        )

    def render(self) -> str:
        """The card as markdown with its YAML header."""
        environment = _environment()
        # user text is passed as values and never parsed as a template
        body = environment.get_template("method.md.j2").render(card=self)
        return f"---\n{self.metadata().to_yaml()}\n---\n\n{body}"

    def content(self) -> bytes:
        """The card as a file holds it."""
        return self.render().encode(errors="replace")  # lone surrogates

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write `README.md` into a folder, complete or not at all; `create_card` does that and more.

        Raises:
            ValueError: one that somebody wrote, which this card is to take the place of only with `overwrite=True`.
        """
        from hf_ext.hub_cards.create import refuse_handwritten  # makes cards of this class

        path = Path(folder) / CARD_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if not overwrite and not (is_regular(path) and path.read_bytes() == self.content()):
            refuse_handwritten(folder)
        write_atomically(path, self.content())
        return path


# ------------------------------------------------------------------------------------------------ facts
def checked_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `MethodCard`: a name alone as a list of one, None as an empty list or mapping.

    Raises:
        ValueError: a value that is no list or mapping where one is due, or items that are not what they should be.
    """
    checked = dict(facts)
    for name in facts.keys() & {*_NAMES}:
        checked[name] = names_of(name, facts[name])
    for name in facts.keys() & {*_MAPPINGS}:
        checked[name] = _checked(name, {} if facts[name] is None else facts[name], Mapping, "names with values")
    for name, kind, items in (
        ("results", Result, "results"),
        ("log_history", Mapping, "entries of a Trainer's log_history"),
        ("plots", tuple | list, "pairs of a file in the card's folder and its caption"),
    ):
        if name in facts:
            values = _checked(name, () if facts[name] is None else facts[name], tuple | list, f"a list of {items}")
            checked[name] = [_checked(name, value, kind, items) for value in values]
    checked |= {"plots": [_plot(pair) for pair in checked["plots"]]} if "plots" in checked else {}
    return checked


def names_of(name: str, value: Any) -> list[str]:
    """A list of names; one name is a list of one.

    Raises:
        ValueError: anything else, in the name of the argument `name`.
    """
    names = (value,) if isinstance(value, str) else () if value is None else value
    names = tuple(names) if isinstance(names, Iterable) else (names,)
    return [_checked(name, item, str, "a list of text") for item in names]


def _checked(name: str, value: Any, kind: Any, allowed: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name}: found {value!r}, allowed is {allowed}")
    return value


def _plot(pair: Sequence[Any]) -> tuple[str, str]:
    """A picture that lies in the card's folder, and nowhere else on this machine."""
    file, caption = map(str, pair) if len(pair) == 2 else ("", "")
    place = PurePosixPath(file)
    if not file or place.is_absolute() or ".." in place.parts or PureWindowsPath(file).is_absolute():
        raise ValueError(f"plots: found {pair!r}, allowed are pairs of a file in the card's folder and its caption")
    return file, caption


# ------------------------------------------------------------------------------------------------ the log


def training_entries(log_history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of a Trainer's `log_history` that are of training steps."""
    return [entry for entry in log_history if "loss" in entry]


def loss_curves(
    log_history: Sequence[Mapping[str, Any]], terms: Iterable[str]
) -> dict[str, list[tuple[float, float]]]:
    """Steps and values of "loss" and its terms, in that order; without terms that were never logged."""
    entries = training_entries(log_history)
    curves = {
        name: [(entry.get("step", place), entry[name]) for place, entry in enumerate(entries) if name in entry]
        for name in dict.fromkeys(("loss", *terms))
    }
    return {name: points for name, points in curves.items() if points}


def _metric_name(result: Result, *, with_system: bool) -> str:
    notes = [result.system] if with_system else []
    if result.step is not None:
        notes.append(f"at step {result.step}")
    if result.seeds > 1:
        notes.append(f"mean of {result.seeds} seeds")
    if result.std is not None:
        notes.append(f"std {result.std:.2g}")
    return f"{result.metric} ({', '.join(notes)})" if notes else result.metric


def _number(value: float) -> str:
    """A result: three decimals, or of a large one none."""
    return f"{value:,.0f}" if math.isfinite(value) and abs(value) >= _LARGE else f"{value:.3f}"


@functools.cache
def _environment() -> Environment:
    """One for all cards: it keeps the templates that it has compiled."""
    environment = Environment(
        loader=PackageLoader("hf_ext.hub_cards", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the output is markdown; what users write goes through these filters
    )
    environment.filters |= {
        "cell": text.cell,
        "line": text.line,
        "block": text.block,
        "code": text.code,
        "span": text.span,
        "file": _address,
        "number": _number,
    }
    return environment


def _address(file: str) -> str:
    return quote(text.visible(file))
