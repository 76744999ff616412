"""`hf-ext reproduce`: the studies of methods."""

import argparse
import shlex
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.markdown import Markdown

from hf_ext._environment import usable_cores
from hf_ext.commands.evidence import importable, named_methods, results_folder
from hf_ext.commands.readme import update_readme
from hf_ext.studies import Study, reproduce
from hf_ext.studies.identity import shown
from hf_ext.studies.report import score_table, verdict_table, write_report
from hf_ext.studies.study import studies_of


def run(arguments: argparse.Namespace) -> None:
    """Run the studies that the arguments name, and leave `OUT/STUDY/{results.json,report.md,differences.png}`.

    Those of quick runs are in `OUT/quick/STUDY`, where they replace nothing else.

    Raises:
        ValueError: an unknown method, study or data set.
    """
    console = Console()
    chosen = _chosen(arguments, console)
    data = _data(arguments.data, [study for _, study in chosen])
    folder = results_folder(arguments)
    for method, study in chosen:
        out = folder / study.name
        console.print(f"[bold]{study.title}[/] ({study.name}): {study.question}")
        own_data = {name: place for name, place in data.items() if name in study.data}
        try:
            result = reproduce(
                study,
                out=out,
                data=own_data,
                seeds=arguments.seeds,
                quick=arguments.quick,
                jobs=usable_cores() if arguments.jobs is None else arguments.jobs,
                console=console,
                command=_command(arguments, method, study, own_data),
            )
        except KeyboardInterrupt:
            console.print(f"finished runs are in {out}: the same command goes on from there")
            raise
        report = write_report(study, result, out)
        console.print(Markdown(score_table(study, result)), Markdown(verdict_table(result)))
        for case, reason in result.skipped.items():
            console.print(f"{case} was not run, {reason}")
        console.print(f"report: {report}")
    if arguments.readme:
        update_readme(arguments.readme, folder)


def _chosen(arguments: argparse.Namespace, console: Console) -> list[tuple[str, Study]]:
    """Studies with their methods. No module of another method is imported: it may need what is not installed."""
    methods = named_methods(arguments.methods, arguments.all, "studies")
    methods = importable(methods, "studies", arguments.all, console)
    names = [study.name for study in studies_of(methods)]
    for name in arguments.study:
        if name not in names:
            raise ValueError(f"--study: found {name!r}, allowed are {', '.join(names)}")
    studies = [(method, study) for method in methods for study in studies_of([method])]
    return [(method, study) for method, study in studies if not arguments.study or study.name in arguments.study]


def _data(pairs: Sequence[str], chosen: Iterable[Study]) -> dict[str, str]:
    known = sorted({name for study in chosen for name in study.data})
    data = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value:
            raise ValueError(f"--data: found {pair!r}, allowed is NAME=PATH_OR_HUB_ID")
        if name not in known:
            raise ValueError(f"--data: found {name!r}, allowed are {', '.join(known)}")
        data[name] = value
    return data


def _command(arguments: argparse.Namespace, method: str, study: Study, data: Mapping[str, str]) -> str:
    """The call that makes these results again; of paths only the last part, for they differ between machines."""
    words = ["hf-ext", "reproduce", method]
    if len(studies_of([method])) > 1:
        words += ["--study", study.name]
    for name, value in sorted(data.items()):
        words += ["--data", f"{name}={shown(value)}"]
    words += ["--seeds", str(arguments.seeds)] if arguments.seeds is not None else []
    words += ["--quick"] if arguments.quick else []
    return shlex.join(words)
