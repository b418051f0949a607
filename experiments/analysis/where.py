"""Row filters such as `n_layer >= 4 and tokens > 1e6`: the expressions of a sweep, asked about the rows of a table."""

from typing import TYPE_CHECKING

from experiments.analysis.filters import Filter

if TYPE_CHECKING:
    import pandas as pd


def select(table: "pd.DataFrame", text: str, place: str = "where") -> "pd.Series[bool]":
    """True for the rows of `table` the filter keeps; columns go by their dotted name or its ending.

    Raises UserError for a name no column has, and for anything beyond the expressions of `Filter`.
    """
    import pandas as pd

    condition = Filter(text, place)
    rows = table.to_dict(orient="records")
    return pd.Series(
        [condition.keeps({str(key): value for key, value in row.items()}) for row in rows], table.index, bool
    )
