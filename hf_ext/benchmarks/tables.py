"""What is not measured in turns of steps but in a way of its own: a table, which `hf-ext bench` prints as well.

A method's module of benchmarks lists functions `make(rounds, quick)` in `TABLES`, each of which measures one.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_ext._environment import hardware, versions
from hf_ext._files import read_json
from hf_ext._reports import markdown_table, write_json


class Skipped(Exception):
    """There is nothing to measure with; says what is missing."""


@dataclass
class Table:
    """Numbers with words.

    Args:
        name: the method's, then a word: "causald-ranking".
        title: one line.
        setting: sizes, and how it was measured, in words.
        header, rows: of the table.
        values: the numbers behind it.
        environment: versions and hardware; those of this process by default.
        command: that it was measured by.
        quick: whether sizes are so small that it shows nothing but that everything works.
    """

    name: str
    title: str
    setting: str
    header: list[str]
    rows: list[list[str]]
    values: dict[str, Any]
    environment: dict[str, str] = field(
        default_factory=lambda: {**versions(), "hardware": hardware("cpu"), "threads": "1"}
    )
    command: str = ""
    quick: bool = False

    def markdown(self) -> str:
        """The table alone."""
        return markdown_table(self.header, self.rows)

    def save(self, path: Path) -> Path:
        """Write JSON, complete or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Table":
        """Read what `save` wrote."""
        return cls(**read_json(path))


#: measures one, of so many rounds; raises `Skipped`
MakeTable = Callable[[int, bool], Table]
FOLDER = "tables"


def load_tables(folder: Path) -> list[Table]:
    """All tables that were saved beside the results in a folder, by name."""
    return [Table.load(path) for path in sorted((folder / FOLDER).glob("*.json"))]
