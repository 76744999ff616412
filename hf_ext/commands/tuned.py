"""What the launch scripts share that give a study a pretrained backbone of the user's."""

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from hf_ext.studies import Study, reproduce
from hf_ext.studies.identity import shown
from hf_ext.studies.report import write_report

_NOT_REPEATED = ("out", "jobs")  # in the call that makes the results again


def study_parser(about: str, data: str) -> argparse.ArgumentParser:
    """The options of such a script; it may add more, whose values are words.

    Args:
        about: what the script does.
        data: what `--data` is.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--backbone", required=True, help="a Hub id, or the folder of a model")
    parser.add_argument("--data", required=True, help=data)
    parser.add_argument("--out", default="examples/results", help="results go to OUT/STUDY")
    parser.add_argument("--seeds", type=int, help="repetitions")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--quick", action="store_true", help="only show that everything works")
    return parser


def run_study(given: argparse.Namespace, study: Study, script: str) -> None:
    """Run a study of one data set, and leave `OUT/STUDY/{results.json,report.md,differences.png}`.

    Args:
        given: what the script was called with.
        study: with the backbone.
        script: its file.

    Raises:
        ValueError: data that the study refuses.
    """
    (name,) = study.data
    place = given.data.removeprefix(f"{name}=")
    out = Path(given.out) / ("quick" if given.quick else "") / study.name
    result = reproduce(
        study,
        out=out,
        data={name: place},
        seeds=given.seeds,
        quick=given.quick,
        jobs=given.jobs,
        console=Console(),
        command=_command(given, script, f"{name}={shown(place)}"),
    )
    print(write_report(study, result, out))


def _command(given: argparse.Namespace, script: str, data: str) -> str:
    """The call that makes these results again; of paths only the last part, for they differ between machines."""
    words = ["python", f"examples/{Path(script).name}"]
    for name, value in {**vars(given), "data": data}.items():
        if name not in _NOT_REPEATED and value not in (None, False):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [shown(str(value))])]
    return shlex.join(words)
