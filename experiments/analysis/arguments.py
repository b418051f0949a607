"""Checks of what an analysis is called with: a mistake is one line with its place, the value and what is allowed."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis.columns import row_names
from nanogpt.config import UserError


def is_number(value: Any) -> bool:
    """A finite number: no truth value, no text."""
    plain = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return plain and math.isfinite(value)


def check_level(level: Any, place: str, name: str = "level") -> float:
    """The level of an interval, a share between 0 and 1."""
    if not is_number(level) or not 0 < level < 1:
        percent = f"; {level:g} % is {level / 100:g}" if is_number(level) and 1 < level < 100 else ""
        raise UserError(f"{place}: {name} must lie between 0 and 1, such as 0.9, found {level!r}{percent}")
    return float(level)


def check_whole(value: Any, place: str, name: str, least: int) -> int:
    """A whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise UserError(f"{place}: {name} must be a whole number of at least {least}, found {value!r}")
    return int(value)


def check_positive(value: Any, place: str, name: str) -> float:
    """A finite number above 0."""
    if not is_number(value) or not value > 0:
        raise UserError(f"{place}: {name} must be a finite number above 0, found {value!r}")
    return float(value)


def check_table(table: Any, place: str, of: str = "runs") -> pd.DataFrame:
    """A table (pandas.DataFrame) with one column of each name; its rows numbered anew, since an index that repeats, as
    that of two tables put together, would mix runs up."""
    if not isinstance(table, pd.DataFrame):
        raise UserError(f"{place}: expected a table of {of} (a pandas DataFrame), found {type(table).__name__}")
    if (twice := table.columns[table.columns.duplicated()]).size:
        raise UserError(f"{place}: the table has two columns {str(twice[0])!r}")
    return table.reset_index(drop=True)


def check_names(names: Any, place: str, name: str, such_as: str) -> tuple[str, ...]:
    """The names of one or more columns, each once."""
    wanted = f"{place}: {name} must be a list of columns such as ['{such_as}'], found {names!r}"
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise UserError(wanted)
    if not all(isinstance(each, str) for each in names) or len(set(names)) < len(names):
        raise UserError(wanted)
    return tuple(names)


def refuse_bad_values(rows: pd.DataFrame, names: Sequence[str], place: str, above_zero: bool = True) -> None:
    """UserError for a row whose value is no finite number (above 0): no run is dropped silently."""
    what = "a finite number above 0" if above_zero else "a finite number"
    for name in names:
        values = pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=float)
        good = np.isfinite(values) & ((values > 0) | (not above_zero))
        if not good.all():
            run = row_names(rows).iloc[int(np.argmin(good))]
            found = rows[name].iloc[int(np.argmin(good))]
            raise UserError(f"{place}: {name} of {run} is {found}; every finished run needs {what} "
                            f"({int((~good).sum())} of {len(rows)} have none; `where` can leave runs out)")  # fmt: skip


def seeds_of(rows: pd.DataFrame, place: str) -> "pd.Series[int]":
    """The seed of every row, 0 where the table has no such column. UserError where one is no whole number."""
    if "seed" not in rows.columns:
        return pd.Series(0, index=rows.index)
    values = pd.to_numeric(rows["seed"], errors="coerce").astype(float)
    bad = ~(np.isfinite(values) & (values == values.round()))
    if bad.any():
        run, found = row_names(rows)[bad].iloc[0], rows.loc[bad, "seed"].iloc[0]
        raise UserError(f"{place}: seed of {run} is {found}; it must be a whole number")
    return values.astype(int)
