"""Results of a study: what was measured, where, on which data; saved as JSON and read back."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_ext._files import read_json
from hf_ext._reports import null_as_nan, write_json
from hf_ext.studies.statistics import Difference, paired_difference
from hf_ext.studies.study import Study

RESULTS_FILE = "results.json"


@dataclass
class SystemResult:
    """One system in one case; lists run over seeds.

    Args:
        hyper_parameters: the chosen ones.
        tuning: all that were tried, `{"hyper_parameters": ..., "validation": mean}`.
        test, validation, seconds: per seed; a score is NaN where training diverged.
        details: per seed, such as scores per task.
    """

    hyper_parameters: dict[str, Any]
    tuning: list[dict[str, Any]]
    test: list[float]
    validation: list[float]
    seconds: list[float]
    details: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass
class Judged:
    """A comparison of a study with its outcome in one case: in the study's metric, or in a detail of that name."""

    case: str
    method: str
    baseline: str
    difference: Difference
    detail: str | None = None


@dataclass
class StudyResult:
    """All of a study that was run.

    Args:
        name: the study's.
        seeds: those of the reported runs.
        cases: systems by name, by case.
        data: for every data set `given` (name, path or id), `sha256` of its rows, `rows` per split.
        skipped: cases left out, with the reasons.
        environment: versions and hardware.
        command: what makes this again.
        quick: shortened runs, which show nothing about the method.
        judged: the comparisons.
    """

    name: str
    seeds: list[int]
    cases: dict[str, dict[str, SystemResult]]
    data: dict[str, dict[str, Any]]
    skipped: dict[str, str]
    environment: dict[str, str]
    command: str
    quick: bool = False
    judged: list[Judged] = field(default_factory=list)

    def judge(self, study: Study) -> None:
        """Fill `judged` from the scores and from the details that every run of both systems has."""
        self.judged = []
        judged = [(None, study.greater_is_better), *((each.name, each.greater_is_better) for each in study.details)]
        for case in (case for case in study.cases if case.name in self.cases):
            for comparison, (detail, greater) in itertools.product(study.compared(case), judged):
                systems = [self.cases[case.name][name] for name in (comparison.method, comparison.baseline)]
                scores = [system.test if detail is None else _known(system, detail) for system in systems]
                if len(scores[0]) == len(scores[1]) > 0:
                    difference = paired_difference(*scores, greater_is_better=greater)
                    self.judged.append(Judged(case.name, comparison.method, comparison.baseline, difference, detail))

    def save(self, folder: Path) -> Path:
        """Write `results.json`, complete or not at all."""
        path = folder / RESULTS_FILE
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "StudyResult":
        """Read what `save` wrote."""
        values = read_json(path)
        cases = {
            case: {name: _system(system) for name, system in systems.items()}
            for case, systems in values["cases"].items()
        }
        judged = [
            Judged(**{**row, "difference": Difference(**{k: null_as_nan(v) for k, v in row["difference"].items()})})
            for row in values["judged"]
        ]
        return cls(**{**values, "cases": cases, "judged": judged})


def _known(system: SystemResult, detail: str) -> list[float]:
    """A detail's value for every seed, or nothing where runs lack it."""
    values = system.details.get(detail, [])
    return [value for value in values if value is not None] if None not in values else []


def _system(values: Mapping[str, Any]) -> SystemResult:
    scores = {name: [null_as_nan(score) for score in values[name]] for name in ("test", "validation")}
    tuning = [{**row, "validation": null_as_nan(row["validation"])} for row in values["tuning"]]
    return SystemResult(**{**values, **scores, "tuning": tuning})
