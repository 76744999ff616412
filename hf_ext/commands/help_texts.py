"""What `hf-ext train METHOD --help` prints, kept as text: asking the dataclasses takes torch and seconds.

What the text calls required is looked for before they are asked.

The files in `help/` are made by `python -m hf_ext.commands.help_texts`; a test holds them against the dataclasses.
"""

import contextlib
import importlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hf_ext.hub_cards.methods import METHODS

_FOLDER = Path(__file__).with_name("help")


def kept(method: str) -> str | None:
    """The text that is kept for a method; None for one that is not ours."""
    file = _FOLDER / f"{method}.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else None


class Required(NamedTuple):
    """What an option takes without which a method does not start; `unless` names one that may be there instead."""

    allowed: str
    unless: str | None = None


def required(method: str) -> dict[str, Required]:
    """Those of a method: what stands after `, required:` in the kept text, or `, required without --OTHER:`."""
    found = {}
    for entry in re.split(r"\n(?=  -)", kept(method) or ""):
        name = re.match(r"  --(\w+)", entry)
        said = re.search(r", required(?: without --(\w+))?: (.+)\.$", _in_one_line(entry))  # no default after it
        if name and said:
            found[name[1]] = Required(said[2], said[1])
    return found


def _in_one_line(entry: str) -> str:
    return " ".join(re.sub(r"(?<=\w)-\n +", "-", entry).split())


def check_required(method: str, words: Sequence[str]) -> None:
    """Refuse a command line that lacks a required option, where no file can have it; what is given is not looked at.

    Raises:
        ValueError: it names the first that is missing.
    """
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("-")}
    if given & {"config", "help", "help_all", "_h"}:
        return
    for name, (allowed, unless) in required(method).items():
        if not given & {name, unless}:
            raise ValueError(f"{name}: found nothing, allowed is {allowed}")


def made(method: str) -> str:
    """The text as the dataclasses say, in lines of 80 characters."""
    module = METHODS[method].module("commands")
    assert module is not None
    columns, printed = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = "80"  # argparse asks for nothing else
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            importlib.import_module(module).train(["--help"])
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return printed.getvalue()


if __name__ == "__main__":
    _FOLDER.mkdir(exist_ok=True)
    for name in METHODS:
        (_FOLDER / f"{name}.txt").write_text(made(name), encoding="utf-8")
