"""Expanding rollouts: fit below a compute cut, predict everything above it, move the cut up, and give one error.

A single cut may be a lucky one. A rollout makes several, so that every law is judged by what it said of runs it had not
seen, near and far. `Rollout.error` is the number to quote beside a fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis import arguments
from experiments.analysis.columns import column, finished
from experiments.analysis.holdout import Holdout, holdout
from experiments.analysis.laws import Law
from experiments.analysis.misfit import held_out_misfit
from experiments.analysis.where import select
from nanogpt.config import UserError

SHARES = (0.5, 0.9)  # of the runs that lie below the first and the last of the cuts


@dataclass(frozen=True, eq=False)
class Rollout:
    """Fits below several cuts of `by` and what they say of the runs above. `steps`: the cuts with their fits, rising.

    `table`: a row per cut and target: cut, fitted (how many runs), id, `by`, beyond (times the largest fitted value of
    `by`), measured, predicted, lower, upper, error (predicted / measured - 1), inside. `skipped`: cuts that could not
    be fitted, with the reason.
    """

    by: str
    steps: tuple[Holdout, ...]
    table: pd.DataFrame
    skipped: tuple[str, ...]

    @property
    def error(self) -> float:
        """Mean absolute relative error: over the targets of a cut, then over the cuts, so that each cut counts once."""
        return float(self.table["error"].abs().groupby(self.table["cut"]).mean().mean())

    @property
    def max_error(self) -> float:
        """Largest absolute relative error of any cut and target."""
        return float(self.table["error"].abs().max())

    @property
    def beyond(self) -> tuple[float, float]:
        """Nearest and farthest target, as a multiple of the largest fitted value of `by`."""
        return float(self.table["beyond"].min()), float(self.table["beyond"].max())

    @property
    def covered(self) -> float:
        """Share of the predictions whose interval holds the measured loss; NaN without a bootstrap."""
        return float(self.table["inside"].mean()) if self.table["lower"].notna().any() else float("nan")

    @property
    def misfit(self) -> str | None:
        """That too few held-out losses lie in their intervals, in words: each run counts once, as predicted from the
        last cut below it, since errors of one run from several cuts are not independent."""
        if np.isnan(self.covered):
            return None
        narrow = held_out_misfit(self.table.sort_values("cut", kind="stable").drop_duplicates("id", keep="last"))
        return narrow and f"Each run taken once, from the last cut below it: {narrow}"

    def by_cut(self) -> pd.DataFrame:
        """A row per cut: cut, fitted, targets, beyond (the farthest), mean_error, max_error, inside (how many)."""
        groups = self.table.groupby("cut")
        size = self.table["error"].abs().groupby(self.table["cut"])
        return pd.DataFrame({
            "cut": list(groups.groups), "fitted": groups["fitted"].first().to_numpy(),
            "targets": groups.size().to_numpy(), "beyond": groups["beyond"].max().to_numpy(),
            "mean_error": size.mean().to_numpy(), "max_error": size.max().to_numpy(),
            "inside": groups["inside"].sum().to_numpy(),
        })  # fmt: skip

    def words(self) -> pd.DataFrame:
        """`by_cut` as text for people."""
        rows = [
            {
                f"fitted below ({self.by})": f"{row['cut']:.3g}", "runs fitted": str(row["fitted"]),
                "runs predicted": str(row["targets"]), "reach": f"{row['beyond']:.3g} x",
                "mean error": f"{row['mean_error']:.2%}", "largest error": f"{row['max_error']:.2%}",
                "inside 95 % interval": "" if np.isnan(self.covered) else f"{row['inside']} of {row['targets']}",
            }
            for row in self.by_cut().to_dict(orient="records")
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def sentence(self) -> str:
        """The number to quote, and what it rests on."""
        low, high = self.beyond
        cuts, targets = len(self.steps), self.table["id"].nunique()
        inside = "" if np.isnan(self.covered) else f"; {self.covered:.0%} of the predictions lie in their 95 % interval"
        return (
            f"Held-out error {self.error:.2%}: the mean |predicted / measured - 1| over {cuts} expanding "
            f"cut{'s' * (cuts != 1)} in {self.by} and {targets} held-out runs, {low:.3g} to {high:.3g} times beyond "
            f"the fitted ones (largest {self.max_error:.2%}{inside})." + (f" {self.misfit}" if self.misfit else "")
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        table = self.table.astype(object).where(self.table.notna(), None)
        return {"by": self.by, "error": self.error, "max_error": self.max_error, "beyond": list(self.beyond),
                "misfit": self.misfit,
                "cuts": [step.cut for step in self.steps], "skipped": list(self.skipped),
                "table": table.to_dict(orient="records")}  # fmt: skip


def rollout(
    law: Law | str,
    df: pd.DataFrame,
    by: str = "flops",
    *,
    cuts: int | Sequence[float] = 5,
    y: str = "val_loss",
    where: str | None = None,
    interval: float = 0.95,
    **options: Any,
) -> Rollout:
    """Fit `law` below each cut of column `by` and predict the runs at or above it.

    `cuts`: values of `by`, or how many: they then leave half to nine tenths of the runs below, and runs of equal `by`
    are never split. A cut that leaves too little to fit is skipped, with the reason kept. Other options go to `holdout`
    and so to its `fitter`.
    Raises UserError where no cut can be fitted: a law that was judged by nothing must not look judged.
    """
    df = arguments.own_index(arguments.table_of(df, "rollout"))
    interval = arguments.level_of(interval, "rollout", "interval")
    by, y = column(df, by, "rollout"), column(df, y, "rollout")
    law = arguments.law_of(law, "rollout")
    values = _choose_cuts(_values(df, by, where), cuts)
    steps: list[Holdout] = []
    skipped: list[str] = []
    for cut in values:
        try:
            steps.append(holdout(law, df, by, below=cut, interval=interval, y=y, where=where, **options))
        except UserError as error:
            skipped.append(f"{by} < {cut:.3g}: {error}")
    if not steps:
        raise UserError(f"rollout: no cut in {by} leaves runs to fit and runs to predict ({skipped[-1]})")
    table = pd.concat([_rows(step, by) for step in steps], ignore_index=True)
    return Rollout(by, tuple(steps), table, tuple(skipped))


def _values(df: pd.DataFrame, by: str, where: str | None) -> "pd.Series[float]":
    """`by` of the runs that will be fitted or predicted."""
    kept = df[finished(df)]
    kept = kept[select(kept, where)] if where is not None else kept
    return pd.to_numeric(kept[by], errors="coerce").dropna().astype(float)


def _choose_cuts(values: "pd.Series[float]", cuts: int | Sequence[float]) -> list[float]:
    """The cuts asked for, rising, each once."""
    if isinstance(cuts, Sequence | np.ndarray) and not isinstance(cuts, str):
        if not len(cuts):
            raise UserError(f"rollout: cuts must be how many, or a list of values of {values.name}, found []")
        return sorted({arguments.above_zero(cut, "rollout", "each of cuts") for cut in cuts})
    cuts = arguments.whole(cuts, "rollout", "cuts", least=1)
    distinct = np.unique(values)
    if len(distinct) < 2:
        raise UserError(f"rollout: needs two values of {values.name} among the finished runs, found {len(distinct)}")
    ordered = np.sort(values.to_numpy())
    at = np.linspace(*SHARES, cuts) * len(ordered) if cuts > 1 else np.array([SHARES[0] * len(ordered)])
    chosen = ordered[np.clip(np.ceil(at).astype(int), 1, len(ordered) - 1)]
    # A value that the smallest runs share leaves none below it; the next one up does.
    return sorted({float(cut) if cut > distinct[0] else float(distinct[1]) for cut in chosen})


def _rows(step: Holdout, by: str) -> pd.DataFrame:
    table = step.table
    kept = [name for name in ("id", "label", by, "measured", "predicted", "lower", "upper", "error", "inside")
            if name in table.columns]  # fmt: skip
    beyond = table[by].astype(float) / float(step.fit.points[by].max())
    rows = table[list(dict.fromkeys(kept))].assign(beyond=beyond, cut=step.cut, fitted=len(step.fit.points))
    return rows.reset_index(drop=True)
