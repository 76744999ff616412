"""A study without any training: every score is written down in its system's options."""

import os
from dataclasses import replace
from typing import Any

from hf_ext.studies import Case, Comparison, Outcome, Preparation, Run, Source, Study, System

RUNS: list[Run] = []  # of this process
PREPARED: list[Preparation] = []


def prepare(ready: Preparation) -> None:
    """The seed's own level, far larger than what lies between the systems."""
    PREPARED.append(ready)
    (ready.folder / "level").write_text(str(100.0 * (ready.seed % 1000) ** 2))


def run(run: Run) -> Outcome:
    """Validation and test score at the grid point `x`, plus the level and some noise of the seed's."""
    if os.environ.get("TOY_FAILING_SEED") == str(run.seed):  # in all processes
        raise ArithmeticError(f"seed {run.seed} diverged")
    RUNS.append(run)
    level = float((run.folder / "level").read_text())
    if run.system.options.get("noisy"):
        level += (-1.0) ** run.seed
    validation, test = run.system.options["scores"][run.hyper_parameters.get("x", 0)]
    return Outcome(level + validation, level + test, {"level": level})


def make(**changes: Any) -> Study:
    """The study: on validation data x = 1 is best, on test data x = 2 (the trap)."""
    study = Study(
        name="toy",
        title="A toy",
        question="Does it work?",
        metric="points",
        data={"first": Source("the first table"), "second": Source("the second table", origin="the attic")},
        cases=(Case("one", "first"), Case("two", "second")),
        systems=(
            System("plain", {"scores": [(1.0, 1.0)]}),
            System("tuned", {"scores": [(1.0, 2.0), (3.0, 4.0), (2.0, 50.0)]}, {"x": (0, 1, 2)}, is_method=True),
            System("noisy", {"scores": [(1.0, 1.0)], "noisy": True}, excluded={"second": "too noisy"}),
        ),
        comparisons=(Comparison("tuned", "plain"), Comparison("tuned", "noisy")),
        prepare=prepare,
        run=run,
        protocol="Scores are looked up.",
        seeds=3,
        quick_seeds=2,
    )
    return replace(study, **changes)


STUDIES = (make(),)
