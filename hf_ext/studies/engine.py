"""Runs a study: prepares, chooses hyper-parameters on validation data, trains all seeds, resumes."""

import json
import math
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn
from transformers.utils import logging

from hf_ext._environment import hardware, versions
from hf_ext._files import read_json
from hf_ext._garbage import spare, spared
from hf_ext._reports import null_as_nan, write_json
from hf_ext._runs import progress_bars
from hf_ext.data import load
from hf_ext.studies.identity import code_of, describe, key, shown
from hf_ext.studies.results import StudyResult, SystemResult
from hf_ext.studies.study import Case, Outcome, Preparation, Run, Study, System

Item = TypeVar("Item")
_FIRST_TUNING_SEED = 1000  # not among the seeds that are reported
_DONE = "done"


@dataclass(frozen=True)
class _Job:
    """A run and the file its outcome is saved in."""

    run: Run
    file: Path


def reproduce(
    study: Study,
    *,
    out: Path,
    data: Mapping[str, str] | None = None,
    seeds: int | None = None,
    quick: bool = False,
    jobs: int = 1,
    console: Console | None = None,
    command: str = "",
) -> StudyResult:
    """Run a study and judge its comparisons.

    Every finished run is saved in `out/runs`, so that the same call after an interruption goes on where it stopped.

    Args:
        study: what to run.
        out: folder for results.
        data: path or Hub id by name of the study's data sets; embedded ones by default.
        seeds: repetitions; the study's own number by default.
        quick: a short run that only shows that everything works.
        jobs: processes at a time.
        console: where progress is shown.
        command: noted in the results.

    Raises:
        ValueError: data of an unknown name or that the study refuses, or no case whose data are there; seeds or jobs
                below 1.
    """
    count = seeds if seeds is not None else (study.quick_seeds if quick else study.seeds)
    for name, value in (("--seeds", count), ("--jobs", jobs)):
        if value < 1:
            raise ValueError(f"{name}: found {value}, allowed are integers >= 1")
    places, skipped = _choose_data(study, data or {})
    if study.check is not None:
        for name, place in places.items():
            study.check(name, load(place))
    described = describe if study.describe is None else study.describe
    hashes = {name: dict(described(value)) for name, value in places.items()}
    code = code_of(study)
    execute = partial(_execute, study.run)
    cases = [case for case in study.cases if case.data in places]
    reported = list(range(count))
    first = max(_FIRST_TUNING_SEED, count)
    tuning = list(range(first, first + (0 if quick else study.tuning_seeds)))
    with progress_bars(console, TimeRemainingColumn()) as progress:
        needed = [*tuning, *reported] if _needs_tuning(study, cases) else reported
        preparations = _preparations(study, code, cases, places, hashes, needed, out, quick)
        _work(progress, f"{study.name}: preparing", partial(_prepare, study.prepare), preparations.values(), jobs)

        def make_jobs(system: System, case: Case, points: Iterable[dict[str, Any]], of: Sequence[int]) -> list[_Job]:
            planned = []
            plain = replace(system, grid={})  # runs have their point; a grid may be a lambda, which no process is sent
            for point in points:
                for seed in of:
                    ready = preparations[case.data, seed]
                    run = Run(case, plain, point, seed, ready.data, ready.folder, quick)
                    planned.append(_Job(run, _file(out, study, code, run, hashes[case.data]["sha256"])))
            return planned

        tried = {
            (case.name, system.name): make_jobs(system, case, system.points(case), tuning)
            for case in cases
            for system in study.systems_of(case)
            if tuning and len(system.points(case)) > 1
        }
        _work(progress, f"{study.name}: choosing", execute, _flat(tried.values()), jobs)
        records = {which: _tuning_record(jobs_of) for which, jobs_of in tried.items()}
        final = {
            (case.name, system.name): make_jobs(
                system, case, [_best(study, records.get((case.name, system.name)), system.points(case))], reported
            )
            for case in cases
            for system in study.systems_of(case)
        }
        _work(progress, f"{study.name}: reported runs", execute, _flat(final.values()), jobs)
    result = StudyResult(
        name=study.name,
        seeds=reported,
        cases={
            case.name: {
                system.name: _collect(final[case.name, system.name], records.get((case.name, system.name), []))
                for system in study.systems_of(case)
            }
            for case in cases
        },
        data={name: {"given": shown(places[name]), **facts} for name, facts in hashes.items()},
        skipped=skipped,
        environment={**versions(), "hardware": hardware(), "code": code},
        command=command,
        quick=quick,
    )
    result.judge(study)
    result.save(out)
    return result


def _choose_data(study: Study, named: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    unknown = sorted(set(named) - set(study.data))
    if unknown:
        raise ValueError(f"--data: found {unknown[0]!r}, allowed for {study.name} are {sorted(study.data)}")
    chosen = {name: named.get(name) or source.embedded for name, source in study.data.items()}
    used = {name: value for name, value in chosen.items() if value is not None}
    skipped = {
        case.name: f"no data: --data {case.data}=PATH_OR_HUB_ID ({study.data[case.data].origin})"
        for case in study.cases
        if case.data not in used
    }
    if len(skipped) == len(study.cases):
        raise ValueError(f"--data: found no data for {study.name}, allowed are {sorted(study.data)}")
    return used, skipped


def _needs_tuning(study: Study, cases: Iterable[Case]) -> bool:
    return any(len(system.points(case)) > 1 for case in cases for system in study.systems_of(case))


def _preparations(
    study: Study,
    code: str,
    cases: Iterable[Case],
    places: Mapping[str, str],
    hashes: Mapping[str, Mapping[str, Any]],
    seeds: Iterable[int],
    out: Path,
    quick: bool,
) -> dict[tuple[str, int], Preparation]:
    used = dict.fromkeys(case.data for case in cases)
    return {
        (name, seed): Preparation(
            name,
            seed,
            places[name],
            out / "prepared" / f"{name}-{seed}-{key(study.name, code, hashes[name]['sha256'], seed, quick)}",
            quick,
        )
        for name in used
        for seed in seeds
    }


def _file(out: Path, study: Study, code: str, run: Run, data_hash: str) -> Path:
    system = {"name": run.system.name, "options": dict(run.system.options)}
    case = {"name": run.case.name, "options": dict(run.case.options)}
    digest = key(study.name, code, case, system, dict(run.hyper_parameters), run.seed, data_hash, run.quick)
    return out / "runs" / f"{_slug(run.case.name)}--{_slug(run.system.name)}--{run.seed}--{digest}.json"


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


# ------------------------------------------------------------------------------------------------ work
def _work(progress: Progress, title: str, function: Callable[[Item], None], items: Iterable[Item], jobs: int) -> None:
    """Call the function for every item, in `jobs` processes."""
    todo = [item for item in items if not _is_done(item)]
    if not todo:
        return
    bar = progress.add_task(title, total=len(todo))
    if jobs == 1:
        with _quiet(), spared():
            for item in todo:
                progress.update(bar, description=f"{title} {_label(item)}")
                function(item)
                progress.advance(bar)
        progress.update(bar, description=title)
        return
    # spawned, since a forked process may inherit locks of torch's threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=context, initializer=_quiet_worker) as pool:
        futures = [pool.submit(function, item) for item in todo]
        try:
            for future in as_completed(futures):
                future.result()
                progress.advance(bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # runs under way are finished and saved
            raise


def _quiet_worker() -> None:
    """One thread (several processes share the cores), and no bars or hints between those of the study."""
    import torch

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """`_quiet_worker`, in a process that is the caller's."""
    import torch

    threads, verbosity = torch.get_num_threads(), logging.get_verbosity()
    bars, datasets_bars = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    _quiet_worker()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not datasets_bars:
            enable_progress_bars()


def _is_done(item: Any) -> bool:
    return item.file.is_file() if isinstance(item, _Job) else (item.folder / _DONE).is_file()


def _label(item: Any) -> str:
    return f"{item.run.case.name}, {item.run.system.name}" if isinstance(item, _Job) else item.name


def _prepare(prepare: Callable[[Preparation], None] | None, ready: Preparation) -> None:
    ready.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=ready.folder.parent) as made:
        part = Path(made) / ready.folder.name
        part.mkdir()
        if prepare is not None:
            prepare(replace(ready, folder=part))
        (part / _DONE).touch()
        part.rename(ready.folder)


def _execute(run: Callable[[Run], Outcome], job: _Job) -> None:
    spare()  # what the last run has imported too
    start = time.perf_counter()
    outcome = run(job.run)
    job.file.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "case": job.run.case.name,
        "system": job.run.system.name,
        "hyper_parameters": dict(job.run.hyper_parameters),
        "seed": job.run.seed,
        "outcome": asdict(outcome),
        "seconds": time.perf_counter() - start,
    }
    write_json(job.file, record)


def _read(job: _Job) -> tuple[Outcome, float]:
    record = read_json(job.file)
    outcome = record["outcome"]
    scores = {name: null_as_nan(outcome[name]) for name in ("validation", "test")}
    return Outcome(**scores, details=outcome["details"]), record["seconds"]


def _tuning_record(jobs: Iterable[_Job]) -> list[dict[str, Any]]:
    """Mean validation score of every combination of hyper-parameters, in the order they were tried."""
    points: dict[str, dict[str, Any]] = {}
    scores: dict[str, list[float]] = {}
    for job in jobs:
        point = dict(job.run.hyper_parameters)
        text = json.dumps(point)
        points[text] = point
        scores.setdefault(text, []).append(_read(job)[0].validation)
    return [
        {"hyper_parameters": points[text], "validation": float(np.mean(values))} for text, values in scores.items()
    ]


def _best(study: Study, record: list[dict[str, Any]] | None, points: list[dict[str, Any]]) -> dict[str, Any]:
    trained = [row for row in record or () if not math.isnan(row["validation"])]
    if not trained:  # nothing to choose from, a quick run, or all diverged
        return points[len(points) // 2]
    choose = max if study.greater_is_better else min
    best: dict[str, Any] = choose(trained, key=lambda row: row["validation"])["hyper_parameters"]
    return best


def _collect(jobs: Sequence[_Job], record: list[dict[str, Any]]) -> SystemResult:
    finished = [_read(job) for job in jobs]
    outcomes = [outcome for outcome, _ in finished]
    return SystemResult(
        hyper_parameters=dict(jobs[0].run.hyper_parameters),
        tuning=record,
        test=[outcome.test for outcome in outcomes],
        validation=[outcome.validation for outcome in outcomes],
        seconds=[round(seconds, 2) for _, seconds in finished],
        details={name: [outcome.details.get(name) for outcome in outcomes] for name in outcomes[0].details},
    )


def _flat(groups: Iterable[list[_Job]]) -> list[_Job]:
    return [job for group in groups for job in group]
