"""What a study is: data, systems, the comparisons that are to be judged. One object per method, in `NAME.py`."""

import importlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_ext.data import EMBEDDED
from hf_ext.hub_cards.methods import METHODS


@dataclass(frozen=True)
class Source:
    """A data set of a study.

    Args:
        about: what it is, in words.
        embedded: name of the embedded data set, or None if the user has to bring it (`--data NAME=PATH_OR_HUB_ID`).
        needs: columns and splits that data put in its place must have.
        origin: where a reader gets it.
    """

    about: str
    embedded: str | None = None
    needs: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        if self.embedded is not None and self.embedded not in EMBEDDED:
            raise ValueError(f"embedded: found {self.embedded!r}, allowed are {', '.join(EMBEDDED)}")


@dataclass(frozen=True)
class Case:
    """One table of the study: a data set and options of the run.

    Args:
        name: short, unique in the study.
        data: a key of `Study.data`.
        options: for `Study.run`, such as `{"backbone": "frozen"}`.
    """

    name: str
    data: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A method or a baseline.

    Args:
        name: as in the tables, unique in the study.
        options: for `Study.run`.
        grid: hyper-parameters and the values tried; the combination with the best validation score is used. A
            function of the case where the values depend on it.
        is_method: whether it is the study's method (tables print it bold).
        excluded: data sets it cannot be run on, and why.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] | Callable[[Case], Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    is_method: bool = False
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
    """Scores of a run. `validation` chooses hyper-parameters, `test` is reported; `details`: scores per task, ..."""

    validation: float
    test: float
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A comparison that anyone can re-run.

    Args:
        name: the method's, lower case.
        title, question: what is to be found out.
        metric: what `Outcome.test` is.
        data, cases, systems, comparisons: see their classes.
        run: trains and scores one system. A function of a module, so that other processes find it.
        prepare: makes what the runs on one data set with one seed share, once.
        protocol: the settings in words (markdown).
        seeds, quick_seeds: repetitions that are reported.
        tuning_seeds: other repetitions, on which hyper-parameters are chosen.
        greater_is_better: of the metric.

    Raises:
        ValueError: names that do not fit each other.
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
    prepare: Callable[[Preparation], None] | None = None
    protocol: str = ""
    seeds: int = 5
    quick_seeds: int = 2
    tuning_seeds: int = 1
    greater_is_better: bool = True

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        if len(set(names)) < len(names):
            raise ValueError(f"systems: found the names {names}, allowed are different ones")
        for case in self.cases:
            if case.data not in self.data:
                raise ValueError(f"cases: found data {case.data!r} in {case.name!r}, allowed are {sorted(self.data)}")
        for comparison in self.comparisons:
            for name in (comparison.method, comparison.baseline):
                if name not in names:
                    raise ValueError(f"comparisons: found {name!r}, allowed are {names}")

    def systems_of(self, case: Case) -> list[System]:
        """The systems that are run in a case."""
        return [system for system in self.systems if case.data not in system.excluded]

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
    """The studies in the modules that these methods name in the registry."""
    modules = [METHODS[name].studies for name in methods]
    return [study for module in modules if module for study in importlib.import_module(module).STUDIES]
