"""What a study of compute-optimal sizes starts from: losses by size, tokens and compute, counted one way or another.

Two choices change the answer and are seldom stated: whether the size counts the embeddings, and whether the compute is
what was really spent or 6 N D, which knows neither attention nor the output layer (Pearce and Song 2024, arXiv
2406.12907; Porian et al. 2024, arXiv 2406.19146: the output layer alone moves the exponent of N from .84 to .71).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from experiments.analysis.columns import column, finished
from experiments.analysis.laws import Array
from experiments.analysis.where import select
from nanogpt.config import UserError

Compute = Literal["exact", "6ND"]
Source = Literal["runs", "curves"]
SIZES = {"n_params": "all parameters", "n_params_non_embedding": "parameters without embeddings",
         "n_params_active": "active parameters"}  # fmt: skip


@dataclass(frozen=True)
class Accounting:
    """Which column is the size N, and whether compute is the column `flops` or 6 N D of that very N."""

    n: str = "n_params_non_embedding"
    compute: Compute = "exact"

    @property
    def size_words(self) -> str:
        """What N counts, for people."""
        return SIZES.get(self.n, self.n)


@dataclass(frozen=True, eq=False)
class Observations:
    """Measured losses. `table`: n, d, flops, loss, `run` (code: observations of one run share their noise) and `path`
    (code: observations that may be joined into one curve over compute: a size's runs, or one training curve).

    `runs`: how many runs stand behind them. `noise`: sd of one observation over seeds, in nats; None where no point was
    trained with several.
    """

    table: pd.DataFrame
    accounting: Accounting
    source: Source
    runs: int
    noise: float | None

    @property
    def sizes(self) -> Array:
        """The distinct sizes, rising."""
        return np.sort(self.table["n"].unique())

    def tokens(self, n: Array, flops: Array | float) -> Array:
        """Tokens that a compute pays for at sizes that were measured."""
        if self.accounting.compute == "6ND":
            return np.asarray(flops / (6.0 * n), dtype=float)
        known = self._cost()
        return np.asarray(flops / np.interp(n, known.index.to_numpy(dtype=float), known.to_numpy(dtype=float)))

    def cost(self) -> "Cost":
        """FLOPs per token as a smooth function of the size, for sizes between the measured ones."""
        if self.accounting.compute == "6ND":
            return Cost(float(np.log(6.0)), 1.0, 0.0, 0.0, 0.0)
        known = self._cost()
        x, y = np.log(known.index.to_numpy(dtype=float)), np.log(known.to_numpy(dtype=float))
        middle, half = float(x.mean()), float((x.max() - x.min()) / 2)
        degree = min(len(x) - 1, 2)
        bend, slope, level = [0.0] * (2 - degree) + list(np.polyfit(x - middle, y, degree))
        return Cost(float(level), float(slope) if degree else 1.0, float(bend), middle, half)

    def _cost(self) -> "pd.Series[float]":
        return (self.table["flops"] / self.table["d"]).groupby(self.table["n"]).median()


@dataclass(frozen=True)
class Cost:
    """ln(FLOPs per token) = level + slope z + bend z^2 with z = ln N - middle, straight on beyond |z| = reach: a join
    of the measured sizes by straight pieces would draw every optimum to a measured size."""

    level: float
    slope: float
    bend: float
    middle: float
    reach: float

    def ln_per_token(self, ln_n: Array) -> Array:
        """ln of FLOPs per token at ln N."""
        inside = np.clip(ln_n - self.middle, -self.reach, self.reach)
        curved = self.level + self.slope * inside + self.bend * inside**2
        return np.asarray(curved + self.elasticity(ln_n) * (ln_n - self.middle - inside))

    def elasticity(self, ln_n: Array) -> Array:
        """d ln(FLOPs per token) / d ln N: 1 where only the size counts."""
        return np.asarray(self.slope + 2 * self.bend * np.clip(ln_n - self.middle, -self.reach, self.reach))


def observe(
    runs: pd.DataFrame,
    accounting: Accounting | None = None,
    *,
    d: str = "tokens",
    flops: str = "flops",
    y: str = "val_loss",
    where: str | None = None,
    curves: pd.DataFrame | None = None,
) -> Observations:
    """The finished rows of `runs` as observations; with `curves`, every point of their training curves instead.

    Final losses of several seeds of one (N, D) are averaged. Points of a curve are right as they stand only where the
    learning rate is constant: under a decay, a run stopped there would have done better. A table without a column
    `flops` is counted at 6 N D only. Raises UserError: unknown column, nothing usable, a value without a logarithm.
    """
    accounting = accounting or Accounting()
    kept = runs[finished(runs)]
    kept = kept[select(kept, where)] if where is not None else kept
    table = kept if curves is None else _points(curves, kept, accounting.n)
    found = pd.DataFrame({"n": _numbers(table, accounting.n), "d": _numbers(table, d), "loss": _numbers(table, y)})
    if accounting.compute == "exact":
        found["flops"] = _numbers(table, flops)
    else:
        found["flops"] = 6.0 * found["n"] * found["d"]
    found["id"] = table["id"].to_numpy() if "id" in table.columns else np.arange(len(table))
    if curves is not None:
        # A line without an evaluation or before the first step says nothing, and one written twice nothing new.
        found = found[np.isfinite(found["loss"]) & (found["d"] > 0)].drop_duplicates(["id", "flops"], keep="last")
    _refuse(found, accounting, y)
    if curves is not None:
        path = pd.factorize(found["id"])[0]
        return Observations(
            found.assign(path=path, run=path).reset_index(drop=True), accounting, "curves", int(path.max()) + 1, None
        )
    means = found.groupby(["n", "d"], sort=True).agg(loss=("loss", "mean"), flops=("flops", "mean")).reset_index()
    means["path"], means["run"] = pd.factorize(means["n"])[0], np.arange(len(means))
    return Observations(means, accounting, "runs", len(found), _seed_noise(found))


def _points(curves: pd.DataFrame, kept: pd.DataFrame, size: str) -> pd.DataFrame:
    """The points of the curves of the runs that are kept, with their size."""
    if "id" not in curves.columns or "id" not in kept.columns:
        raise UserError("approaches: training curves and runs are matched by `id`, which one of the tables lacks")
    points = curves[curves["id"].isin(kept["id"])]
    name = column(kept, size, "approaches")
    return points.assign(**{name: points["id"].map(kept.set_index("id")[name])})


def _numbers(table: pd.DataFrame, name: str) -> Array:
    return pd.to_numeric(table[column(table, name, "approaches")], errors="coerce").to_numpy(dtype=float)


def _refuse(found: pd.DataFrame, accounting: Accounting, y: str) -> None:
    if not len(found):
        raise UserError("approaches: no finished run to look at")
    names = {"n": accounting.n, "d": "tokens", "flops": "flops", "loss": y}
    for name, said in names.items():
        bad = ~(np.isfinite(found[name]) & (found[name] > 0))
        if bad.any():
            place = f"{said} of {found.loc[bad, 'id'].iloc[0]} is {found.loc[bad, name].iloc[0]}"
            raise UserError(f"approaches: {place}; every value must be finite and positive ({int(bad.sum())} of "
                            f"{len(found)} are not)")  # fmt: skip


def _seed_noise(found: pd.DataFrame) -> float | None:
    """Pooled sd over the runs of equal (N, D), divided by the root of how many are averaged."""
    cells = found.groupby(["n", "d"])["loss"].agg(["var", "count"])
    repeated = cells[cells["count"] > 1]
    if not len(repeated):
        return None
    pooled = float((repeated["var"] * (repeated["count"] - 1)).sum() / (repeated["count"] - 1).sum())
    return float(np.sqrt(pooled / cells["count"].median()))
