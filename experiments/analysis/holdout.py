"""Held-out prediction: fit a law to the smaller runs, predict the larger ones, and put measured beside predicted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis import arguments
from experiments.analysis.columns import column, finished, row_names
from experiments.analysis.fit import fit
from experiments.analysis.fitted import Fit
from experiments.analysis.laws import Law
from experiments.analysis.misfit import held_out_misfit
from experiments.analysis.where import select
from nanogpt.config import UserError


@dataclass(frozen=True, eq=False)
class Holdout:
    """A fit below a cut and its predictions above it. `table`: one row per held-out run with id, the law's columns, the
    column of the cut, measured, predicted, lower, upper, error (predicted / measured - 1) and inside."""

    fit: Fit
    by: str
    cut: float
    table: pd.DataFrame

    @property
    def max_error(self) -> float:
        """Largest absolute relative error."""
        return float(self.table["error"].abs().max())

    @property
    def mean_error(self) -> float:
        """Mean absolute relative error."""
        return float(self.table["error"].abs().mean())

    @property
    def reach(self) -> float:
        """How far beyond the fitted runs the largest held-out run lies along `by`, as a factor."""
        return float(self.table[self.by].max() / self.fit.points[self.by].max())

    @property
    def misfit(self) -> str | None:
        """That the intervals hold too few of the held-out losses, in words; None where they do not, or there are
        none."""
        return held_out_misfit(self.table) if len(self.fit.draws) else None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        table = self.table.astype(object).where(self.table.notna(), None)
        return {
            "by": self.by, "cut": self.cut, "max_error": self.max_error, "mean_error": self.mean_error,
            "reach": self.reach, "inside": int(self.table["inside"].sum()), "misfit": self.misfit,
            "fit": self.fit.to_dict(), "table": table.to_dict(orient="records"),
        }  # fmt: skip


def holdout(
    law: Law | str,
    df: pd.DataFrame,
    by: str = "flops",
    *,
    fraction: float | None = None,
    below: float | None = None,
    largest: int | None = None,
    interval: float = 0.95,
    y: str = "val_loss",
    where: str | None = None,
    fitter: Callable[..., Fit] = fit,
    **options: Any,
) -> Holdout:
    """Fit `law` to the runs below a cut on column `by` and predict those at or above it.

    The cut is exactly one of `fraction` (share of the runs held out, the largest), `below` (a value of `by`) and
    `largest` (how many distinct values of `by`, from the top). Runs of equal `by` are never split. Other options go to
    `fitter`.
    Raises UserError when nothing is left on a side, and as `fit`.
    """
    df = arguments.own_index(arguments.table_of(df, "holdout"))
    interval = arguments.level_of(interval, "holdout", "interval")
    by = column(df, by, "holdout")
    keep = finished(df)
    if where is not None:
        keep = keep & select(df[keep], where).reindex(df.index, fill_value=False)
    size = pd.to_numeric(df[by], errors="coerce")
    cut = _cut(size[keep], fraction, below, largest)
    above = df[keep & (size >= cut)]
    if not len(above):
        raise UserError(f"holdout: no finished run has {by} >= {cut:g}; the largest is {size[keep].max():g}")
    small = fitter(law, df[~(size >= cut)], y=y, where=where, keep=(by,), **options)
    predicted = small.predict(above, interval)
    measured = above[column(above, y, "holdout")].astype(float)
    names = dict.fromkeys([*(["label"] if "label" in above.columns else []), *small.law.columns, by])
    table = pd.DataFrame({"id": row_names(above), **{name: above[name] for name in names}, "measured": measured})
    table = table.join(predicted)
    table["error"] = table["predicted"] / table["measured"] - 1.0
    table["inside"] = table["measured"].between(table["lower"], table["upper"])
    return Holdout(small, by, cut, table.sort_values(by, kind="stable").reset_index(drop=True))


def _cut(values: "pd.Series[float]", fraction: float | None, below: float | None, largest: int | None) -> float:
    """The value of the column from which on runs are held out."""
    if sum(choice is not None for choice in (fraction, below, largest)) != 1:
        raise UserError("holdout: give exactly one of fraction, below, largest")
    if below is not None:
        return arguments.above_zero(below, "holdout", "below")
    if not len(values):
        raise UserError("holdout: no finished runs")
    distinct = np.sort(values.unique())
    if largest is not None:
        if not 1 <= arguments.whole(largest, "holdout", "largest") < len(distinct):
            raise UserError(f"holdout: largest must lie in 1 .. {len(distinct) - 1} ({len(distinct)} distinct values), "
                            f"found {largest}")  # fmt: skip
        return float(distinct[-largest])
    count = max(1, round(arguments.level_of(fraction, "holdout", "fraction") * len(values)))
    return float(np.sort(values)[-count])
