"""What results are reported with: mean and deviation, markdown tables, JSON without NaN."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_ext._files import write_atomically


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (`None` for a single value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; cells may hold `|`."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file, complete or not at all; NaN becomes null."""
    write_atomically(path, json.dumps(_no_nan(values), indent=1) + "\n")


def _no_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return value


def null_as_nan(value: Any) -> Any:
    """A number as `write_json` left it."""
    return math.nan if value is None else value
