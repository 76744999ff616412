"""Columns of a table as ids, times and ratings, or an error that names column, row and value."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_LARGEST, _LARGEST_FLOAT = 2**63 - 1, 2**53  # a larger float may have been another integer


def ids_of(table: pd.DataFrame, column: str) -> pd.Series:
    """Raw ids, `[N]`: int64 if all are whole numbers, str otherwise.

    Text such as `"12"` is a number if all of the column are, written without leading zeros; so are floats such as
    `12.0`, which columns with gaps become elsewhere.

    Raises:
        ValueError: ids that are missing or empty, booleans, fractions, or of several kinds.
    """
    values, allowed = table[column], "an id in each row"
    _refuse(values.isna().to_numpy(), values, column, allowed)
    if pd.api.types.is_integer_dtype(values):
        _refuse((values > _LARGEST).to_numpy(), values, column, "whole numbers of 64 bits, or text")
        return pd.Series(values.to_numpy(dtype=np.int64))
    values = values.astype(object)
    kinds = {_kind(kind) for kind in set(map(type, values))}
    if kinds not in ({"text"}, {"integers"}, {"floats"}):
        raise ValueError(f"{column}: found {' and '.join(sorted(kinds))} as ids, allowed are integers, or text, alone")
    places, names = pd.factorize(values)  # far fewer than rows
    if kinds == {"text"}:
        _refuse(np.array([_says_nothing(name) for name in names])[places], values, column, allowed)
        return pd.Series(_numbers_of_text(pd.Series(names)).to_numpy()[places])
    largest = _LARGEST if kinds == {"integers"} else _LARGEST_FLOAT
    wrong = np.array([number % 1 != 0 or abs(number) > largest for number in names])
    _refuse(wrong[places], values, column, "whole numbers of 64 bits, or text")
    return pd.Series(names.astype(np.int64)[places])


def _kind(kind: type) -> str:
    if issubclass(kind, bool | np.bool_):
        return "booleans"
    if issubclass(kind, int | np.integer):
        return "integers"
    if issubclass(kind, float | np.floating):
        return "floats"
    return "text" if issubclass(kind, str) else f"{kind.__name__} objects"


def _numbers_of_text(values: pd.Series) -> pd.Series:
    if not values.str.fullmatch(r"(?:0|-?[1-9]\d{0,17})(?:\.0)?").all():
        return values
    whole = values.str.removesuffix(".0")
    dotted = (whole != values).to_numpy()
    return whole.astype(np.int64) if dotted.all() or not dotted.any() else values


def times_of(table: pd.DataFrame, column: str) -> NDArray[Any]:
    """Times, `[N]`: int64 or float64 as they are; dates, also as text in ISO 8601, as int64 nanoseconds.

    Dates without a zone are taken for UTC.

    Raises:
        ValueError: times that are missing, infinite, booleans or cannot be read.
    """
    values = table[column]
    allowed = "numbers or dates in ISO 8601"
    _refuse(values.isna().to_numpy(), values, column, allowed)
    if pd.api.types.is_datetime64_any_dtype(values):
        return _nanoseconds(values)
    if pd.api.types.is_bool_dtype(values):
        raise ValueError(f"{column}: found booleans as times, allowed are {allowed}")
    numbers = _numbers(values)
    if not np.isnan(numbers).all():
        _refuse(~np.isfinite(numbers), values, column, allowed)
        return numbers
    dates = pd.to_datetime(values, format="ISO8601", utc=True, errors="coerce")
    _refuse(dates.isna().to_numpy(), values, column, allowed)
    return _nanoseconds(dates)


def _nanoseconds(dates: pd.Series) -> NDArray[np.int64]:
    if dates.dt.tz is not None:
        dates = dates.dt.tz_convert("UTC").dt.tz_localize(None)
    return dates.to_numpy().astype("datetime64[ns]").astype(np.int64)


def _numbers(values: pd.Series) -> NDArray[Any]:
    """As int64 or float64, NaN for what is no number."""
    numbers = pd.to_numeric(values, errors="coerce")
    whole = pd.api.types.is_integer_dtype(numbers)
    return numbers.to_numpy(dtype=np.int64 if whole else np.float64)


def ratings_of(table: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Ratings, float64 `[N]`.

    Raises:
        ValueError: ratings that are missing, not finite, booleans or no numbers.
    """
    values, allowed = table[column], "finite numbers"
    _refuse(values.isna().to_numpy(), values, column, allowed)
    if pd.api.types.is_bool_dtype(values):
        raise ValueError(f"{column}: found booleans as ratings, allowed are {allowed}")
    numbers = _numbers(values).astype(np.float64)
    _refuse(~np.isfinite(numbers), values, column, allowed)
    return numbers


def _says_nothing(value: str) -> bool:
    """Text for what is missing: else one row of it would make text of all numbers of an id column."""
    return value.strip().lower() in ("", "nan", "none", "null", "<na>")


def _refuse(wrong: NDArray[np.bool_], values: pd.Series, column: str, allowed: str) -> None:
    if not wrong.any():
        return None
    row = int(np.argmax(wrong))
    value = values.iloc[row]
    value = value.item() if isinstance(value, np.generic) else value
    raise ValueError(
        f"{column}: found {value!r} in row {row} (of rows counted from 0; {int(wrong.sum())} such of "
        f"{len(wrong)}), allowed are {allowed}"
    )
