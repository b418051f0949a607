"""What a person hands to an analysis, checked before any arithmetic: each mistake is a UserError of one line, with its
place, the value and what is allowed."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis.columns import row_names
from experiments.analysis.laws import LAWS, Array, Law, make_law
from nanogpt.config import UserError, did_you_mean


def law_of(given: Any, place: str) -> Law:
    """A law, or the law of that name."""
    if isinstance(given, str):
        return make_law(given)
    if isinstance(given, type) and issubclass(given, Law):
        raise UserError(f"{place}: law is the class {given.__name__}; {given.__name__}() is a law")
    if not isinstance(given, Law):
        raise UserError(f"{place}: law must be a law or the name of one, found {given!r}; named: {', '.join(LAWS)}")
    return given


def table_of(given: Any, place: str, name: str = "the table") -> pd.DataFrame:
    """A DataFrame, or a mapping of columns as one; its columns are named by text, each once."""
    if isinstance(given, Mapping):
        try:
            given = pd.DataFrame(dict(given))
        except (TypeError, ValueError) as error:
            raise UserError(f"{place}: {name} is a mapping, but not of columns alike in length: {error}") from None
    if not isinstance(given, pd.DataFrame):
        raise UserError(f"{place}: {name} must be a DataFrame or a mapping of columns, found {type(given).__name__}")
    names = [str(name) for name in given.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{place}: {name} has {names.count(twice)} columns called {twice!r}; rename all but one")
    return given if names == list(given.columns) else given.set_axis(names, axis=1)


def own_index(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an index that names each row once; tables that were put together often repeat theirs."""
    return table if table.index.is_unique else table.reset_index(drop=True)


LEAVE_OUT = "; `where` can leave rows out"  # what to do about a bad value, where there is a `where`


def numbers(
    values: "pd.Series[Any]", names: Sequence[str], place: str, above_zero: bool = True, advice: str = ""
) -> Array:
    """The column as float64. UserError with the first value that is no finite number (above zero), and what one may do
    about it: none is dropped silently."""
    column, given = values.name, values.to_list()
    for name, value in zip(names, given, strict=True):
        if isinstance(value, bool | np.bool_) or not (isinstance(value, Real) or (pd.api.types.is_scalar(value)
                                                      and pd.isna(value))):  # fmt: skip
            raise UserError(f"{place}: {column} of {name} is {value!r}, of type {type(value).__name__}, not a number")
    found = np.array([np.nan if pd.isna(value) else float(value) for value in given], dtype=float)
    bad = ~(np.isfinite(found) & ((found > 0) | (not above_zero)))
    if bad.any():
        i = int(np.argmax(bad))
        wanted = "a law takes logarithms, so every value must be finite and positive" if above_zero else (
            "every value must be finite")  # fmt: skip
        raise UserError(f"{place}: {column} of {names[i]} is {given[i]}; {wanted} ({int(bad.sum())} of {len(bad)} are "
                        f"not{advice})")  # fmt: skip
    return found


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


def level_of(value: Any, place: str, name: str = "level") -> float:
    """The level of an interval, above 0 and below 1."""
    number = _real(value, place, name)
    if 0 < number < 1:
        return number
    percent = f"; did you mean {number / 100:g}?" if 1 < number < 100 else ""
    raise UserError(f"{place}: {name} must lie between 0 and 1, such as 0.9, found {value!r}{percent}")


def above_zero(value: Any, place: str, name: str) -> float:
    """A finite positive number."""
    number = _real(value, place, name)
    if not 0 < number < math.inf:
        raise UserError(f"{place}: {name} must be positive and finite, found {value!r}")
    return number


def whole(value: Any, place: str, name: str, least: int = 0) -> int:
    """A whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, Integral) or operator.index(value) < least:
        raise UserError(f"{place}: {name} must be a whole number of at least {least}, found {value!r}")
    return operator.index(value)


def resamples(value: Any, place: str) -> int:
    """How many resamples: 0 for none, else at least 2, as one has no spread."""
    if (count := whole(value, place, "bootstrap")) == 1:
        raise UserError(f"{place}: bootstrap must be 0 (no resamples) or at least 2, found 1: one has no spread")
    return count


def switch(value: Any, place: str, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"{place}: {name} must be True or False, found {value!r}")
    return bool(value)


def one_of(value: Any, allowed: Iterable[str], place: str, name: str) -> str:
    """One of the names allowed."""
    known = tuple(allowed)
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{place}: {name} {value!r} is not known{did_you_mean(value, known)}")
    return value


def text_of(value: Any, place: str, name: str, what: str = "the name of a column") -> str:
    """A text: the name of a column, a filter."""
    if not isinstance(value, str):
        raise UserError(f"{place}: {name} must be {what}, found {value!r}")
    return value


def names_of(names: Any, place: str, name: str, such_as: str) -> tuple[str, ...]:
    """The names of one or more columns, each once."""
    wanted = f"{place}: {name} must be a list of columns such as ['{such_as}'], found {names!r}"
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise UserError(wanted)
    if not all(isinstance(each, str) for each in names) or len(set(names)) < len(names):
        raise UserError(wanted)
    return tuple(names)


def is_finite(value: Any) -> bool:
    """A finite number: no truth value, no text."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_) and math.isfinite(value)


def _real(value: Any, place: str, name: str) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise UserError(f"{place}: {name} must be a number, found {value!r}")
    return float(value)
