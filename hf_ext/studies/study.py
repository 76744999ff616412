"""What a study is: data, systems, the comparisons that are to be judged. One object per study, in its own file."""

import importlib
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hf_ext.data import EMBEDDED
from hf_ext.hub_cards.methods import METHODS

#: names of other folders and blocks of results
RESERVED = ("bench", "quick", "summary")


@dataclass(frozen=True)
class Source:
    """A data set of a study.

    Args:
        about: what it is, in words.
        embedded: name of the data set that comes with the package, or None if the user has to bring it
            (`--data NAME=PATH_OR_HUB_ID`).
        needs: columns and splits that data put in its place must have.
        origin: where a reader gets it.
    """

    about: str
    embedded: str | None = None
    needs: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Case:
    """One table of the study: a data set and options of the run.

    Args:
        name: short, unique in the study.
        data: a key of `Study.data`.
        options: for `Study.run`, such as `{"backbone": "frozen"}`; JSON values.
    """

    name: str
    data: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A method or a baseline.

    Args:
        name: as in the tables, unique in the study.
        options: for `Study.run`; JSON values.
        grid: hyper-parameters and the values tried (JSON values, or tuples of them); the combination with the best
            validation score is used. A function of the case where the values depend on it. Runs do not see it.
        is_method: whether it is the study's method (tables print it bold).
        runs_in: whether it is run in a case; by default in all.
        excluded: data sets it cannot be run on, and why.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] | Callable[[Case], Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    is_method: bool = False
    runs_in: Callable[[Case], bool] | None = None
    excluded: Mapping[str, str] = field(default_factory=dict)

    def points(self, case: Case) -> list[dict[str, Any]]:
        """Every combination of hyper-parameters."""
        grid = self.grid(case) if callable(self.grid) else self.grid
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


@dataclass(frozen=True)
class Comparison:
    """`method` is claimed to beat `baseline` (names of systems), in the named cases or in all."""

    method: str
    baseline: str
    cases: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Detail:
    """A detail of outcomes that is judged like the metric, such as the worst task's score.

    Args:
        name: a key of `Outcome.details`.
        greater_is_better: of it.
    """

    name: str
    greater_is_better: bool = True


@dataclass(frozen=True)
class Run:
    """One training of one system: all that `Study.run` may depend on.

    Args:
        case, system: which.
        hyper_parameters: one point of the system's grid.
        seed: of the data split, the base model and the training; the same seed pairs the systems.
        data: name, path or Hub id for `hf_ext.data.load`.
        folder: what `Study.prepare` made for this data and seed.
        quick: a much shorter run that only shows that everything works.
    """

    case: Case
    system: System
    hyper_parameters: Mapping[str, Any]
    seed: int
    data: str
    folder: Path
    quick: bool = False


@dataclass(frozen=True)
class Preparation:
    """What all runs on one data set with one seed share, such as a base model; `prepare` leaves it in `folder`.

    Args:
        name: key of `Study.data`.
        seed, data, quick: as in `Run`.
        folder: exists and is empty.
    """

    name: str
    seed: int
    data: str
    folder: Path
    quick: bool = False


@dataclass(frozen=True)
class Outcome:
    """Scores of a run. `validation` chooses hyper-parameters, `test` is reported; `details`: scores per task, ...

    Numbers of numpy and torch become floats; of the details, None is one that this run does not have.
    """

    validation: float
    test: float
    details: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        details = {name: None if value is None else float(value) for name, value in self.details.items()}
        for name, value in (("validation", float(self.validation)), ("test", float(self.test)), ("details", details)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Study:
    """A comparison that anyone can re-run.

    Args:
        name: the method's, lower case; of letters, digits, "-" and "_", for a folder is called so.
        title, question: what is compared, and to which end.
        metric: what `Outcome.test` is.
        data, cases, systems, comparisons: see their classes.
        run: trains and scores one system. A function of a module, so that other processes find it.
        check: called with a key of `data` and what was loaded for it, before anything is prepared; raises ValueError
            for data that the study cannot use.
        describe: in place of `check`, of data that `hf_ext.data.load` does not read, such as graphs: called with a
            name or path, returns `sha256` of what is in it, `rows` (their numbers by name) and of a file
            `file_sha256`; raises ValueError for data that the study cannot use.
        prepare: makes what the runs on one data set with one seed share, once.
        protocol: the settings in words (markdown).
        seeds, quick_seeds: repetitions that are reported.
        tuning_seeds: other repetitions, on which hyper-parameters are chosen.
        greater_is_better: of the metric.
        details: those in which the comparisons are judged too; they choose nothing.

    Raises:
        ValueError: names that do not fit each other, options or hyper-parameters that are no JSON values.
    """

    name: str
    title: str
    question: str
    metric: str
    data: Mapping[str, Source]
    cases: tuple[Case, ...]
    systems: tuple[System, ...]
    comparisons: tuple[Comparison, ...]
    run: Callable[[Run], Outcome]
    check: Callable[[str, DatasetDict], None] | None = None
    describe: Callable[[str], Mapping[str, Any]] | None = None
    prepare: Callable[[Preparation], None] | None = None
    protocol: str = ""
    seeds: int = 5
    quick_seeds: int = 2
    tuning_seeds: int = 1
    greater_is_better: bool = True
    details: tuple[Detail, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name) or self.name in RESERVED:
            raise ValueError(f"name: found {self.name!r}, allowed are letters, digits, - and _, but not {RESERVED}")
        if not inspect.isfunction(self.run):  # what its code is has to be clear
            raise ValueError(f"run: found {self.run!r}, allowed is a function of a module")
        if self.describe is None:
            for source in self.data.values():
                _known("embedded", [source.embedded] if source.embedded else [], EMBEDDED)
        elif self.check is not None:
            raise ValueError(
                "check: found one beside describe, allowed is None: describe refuses what is no such data"
            )
        systems = _different("systems", [system.name for system in self.systems])
        cases = _different("cases", [case.name for case in self.cases])
        _different("details", [detail.name for detail in self.details])
        for case in self.cases:
            _known(f"cases: data of {case.name!r}", [case.data], self.data)
            _json(f"cases: options of {case.name!r}", case.options)
        for system in self.systems:
            _known(f"systems: excluded of {system.name!r}", system.excluded, self.data)
            _json(f"systems: options of {system.name!r}", system.options)
        for comparison in self.comparisons:
            _known("comparisons", [comparison.method, comparison.baseline], systems)
            _known("comparisons: cases", comparison.cases or (), cases)
        for case in self.cases:
            for system in self.systems_of(case):
                points = system.points(case)
                if not points:
                    raise ValueError(f"systems: found an empty grid of {system.name!r}, allowed is one value or more")
                _json(f"systems: grid of {system.name!r}", points)

    def systems_of(self, case: Case) -> list[System]:
        """The systems that are run in a case."""
        return [
            system
            for system in self.systems
            if case.data not in system.excluded and (system.runs_in is None or system.runs_in(case))
        ]

    def compared(self, case: Case) -> list[Comparison]:
        """The comparisons that are judged in a case."""
        run = {system.name for system in self.systems_of(case)}
        return [
            comparison
            for comparison in self.comparisons
            if {comparison.method, comparison.baseline} <= run
            and (comparison.cases is None or case.name in comparison.cases)
        ]


def studies_of(methods: Iterable[str]) -> list[Study]:
    """The studies in the modules that these methods name in the registry.

    Raises:
        ValueError: two of one name, whose results would share a folder.
    """
    modules = [METHODS[name].module("studies") for name in methods]
    studies = [study for module in modules if module for study in importlib.import_module(module).STUDIES]
    _different("STUDIES", [study.name for study in studies])
    return studies


def _different(what: str, names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError(f"{what}: found the names {names}, allowed are different ones")
    return names


def _known(what: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    for name in names:
        if name not in allowed:
            raise ValueError(f"{what}: found {name!r}, allowed are {sorted(allowed)}")


def _json(what: str, values: Any) -> None:
    """Saved runs are named after these values; a function, for one, would be an address."""
    try:
        json.dumps(values, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: found {values!r}, allowed are JSON values ({error})") from error
