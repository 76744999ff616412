"""What `hf-ext reproduce` and `hf-ext bench` share: which methods, and the folder of results."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hf_ext.hub_cards.methods import METHODS, Kind


def named_methods(names: Sequence[str], everything: bool, kind: Kind) -> list[str]:
    """Names of the methods that have `kind` ("studies" or "benchmarks"), as chosen on the command line.

    Raises:
        ValueError: no method or an unknown one.
    """
    known = [name for name, method in METHODS.items() if method.module(kind)]
    if everything and not names:
        return known
    unknown = [name for name in names if name not in known]
    if unknown or not names or everything:
        wrong = repr(unknown[0]) if unknown else ("--all and names" if everything else "none")
        raise ValueError(f"METHOD: found {wrong}, allowed are {', '.join(known)} or --all")
    return list(dict.fromkeys(names))


def importable(methods: Sequence[str], kind: Kind, everything: bool, console: Console) -> list[str]:
    """The methods; of all of them (`--all`), those whose requirements are installed, and a line about the others."""
    available = []
    for name in methods:
        try:
            importlib.import_module(str(METHODS[name].module(kind)))
        except ImportError as error:
            if not everything:
                raise
            console.print(f"{name} is left out: {error}")
        else:
            available.append(name)
    return available


def results_folder(arguments: argparse.Namespace) -> Path:
    """Where results go; quick runs, which are no evidence, have a folder of their own."""
    return Path(arguments.out) / "quick" if arguments.quick else Path(arguments.out)
