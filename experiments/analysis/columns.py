"""Finding columns by dotted name or leaf (`n_layer` for `model.n_layer`), and which rows of the table are results."""

import pandas as pd

from experiments.analysis.spec import column_among
from nanogpt.config import UserError

# Factors that are no dotted keys: whole sections, and the named variants of a sweep.
UNDOTTED = frozenset({"optimizer", "schedule", "model", "data", "parametrization", "init_from", "variant"})
SERIES = frozenset({"completed"})  # the states whose loss belongs in a fit or a mean


def column(table: pd.DataFrame, name: str, place: str = "table") -> str:
    """The name of the column `name` means; UserError naming the candidates or the nearest column."""
    if not isinstance(name, str):
        raise UserError(f"{place}: a column goes by its name, found {name!r}")
    return column_among(map(str, table.columns), name, place)


def varied_factors(table: pd.DataFrame, *but: str) -> list[str]:
    """The columns that tell one setting from another: varied factors, other than those named."""
    names = [str(name) for name in table.columns if "." in str(name) or name in UNDOTTED]
    return [name for name in names if name not in but and table[name].map(repr).nunique() > 1]


def finished(table: pd.DataFrame) -> "pd.Series[bool]":
    """True for rows whose loss is a result: status completed, or every row where the table has no status.

    Rows that a person has left out (column `excluded`, with the reason) are none.
    """
    if "status" not in table.columns:
        return ~excluded(table)
    return table["status"].isin(SERIES) & ~excluded(table)


def excluded(table: pd.DataFrame) -> "pd.Series[bool]":
    """True for rows that a person has left out of fits and figures."""
    if "excluded" not in table.columns:
        return pd.Series(False, index=table.index)
    return table["excluded"].notna() & table["excluded"].astype(str).ne("")


def diverged(table: pd.DataFrame) -> "pd.Series[bool]":
    """True for rows recorded as diverged: a result to show, never one to fit."""
    if "status" not in table.columns:
        return pd.Series(False, index=table.index)
    return table["status"].eq("diverged")


def row_names(table: pd.DataFrame) -> "pd.Series[str]":
    """What to call each row: its id, else its label or name, else its index."""
    for name in ("id", "label", "name"):
        if name in table.columns:
            return table[name].astype(str)
    return pd.Series([f"row {i}" for i in table.index], index=table.index)
