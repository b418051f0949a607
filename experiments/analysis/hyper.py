"""Hyper-parameter laws: the best learning rate (batch size, weight decay) as a power law of model and data size.

Per size the optimum is the one of `find_optima`: a parabola in log2 of the factor through the mean losses around the
lowest. The law is x* = c * prod_j s_j^e_j, a least-squares plane through the optima in logarithms, such as
lr* = c N^a D^b (Li et al. 2025, arXiv 2503.04715, "Step Law"; Porian et al. 2024, arXiv 2406.19146 with N alone).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.analysis import arguments
from experiments.analysis.columns import column, diverged, finished
from experiments.analysis.optimum import Estimate, Optima, find_optima
from experiments.analysis.parabola import Refusal
from experiments.analysis.spec import column_among
from experiments.analysis.student import LEVEL, Array, Interval, Spread, fitted_spread
from experiments.analysis.where import select
from nanogpt.config import UserError

SIZE = "size.combination"  # the sizes numbered, because `find_optima` takes one column
TOGETHER = 1e4  # condition number of the centred design from which the sizes move together


@dataclass(frozen=True, eq=False)
class HyperLaw:
    """x* = constant * prod_j (s_j / centre_j)^exponent_j; the constant is the optimum at the centres.

    `optima`: a row per size with its columns, the optimum with its 95 % interval over seeds, and `reason` where there
    is none. What the runs do not hold is a Refusal. `spreads` keeps what `predict` needs.
    """

    of: str
    sizes: tuple[str, ...]
    y: str
    level: float
    seeds: int
    constant: Interval | Refusal
    exponents: Mapping[str, Interval | Refusal]
    centres: Mapping[str, float]
    optima: pd.DataFrame
    notes: tuple[str, ...]
    _coefficients: Array
    _replicates: Array
    _unit: Array
    _residual_sum: float
    _noise: Spread

    def predict(self, **sizes: float) -> Interval:
        """The optimum at a size, with the interval of the law there (not of a new sweep). Sizes go by their column or
        its last part. UserError without a law, and for sizes that are not the law's or no numbers above 0."""
        place = "hyper law: predict"
        if isinstance(self.constant, Refusal):
            raise UserError(f"hyper law: there is none to predict from: {self.constant.reason}")
        at = {column_among(self.sizes, key, place): arguments.above_zero(sizes[key], place, key) for key in sizes}
        if missing := [name for name in self.sizes if name not in at]:
            raise UserError(f"{place}: needs {' and '.join(self.sizes)}, and {missing[0]} is missing")
        row = np.array([1.0, *(math.log2(at[key] / self.centres[key]) for key in self.sizes)])
        found = _spread(self._replicates @ row, float(row @ self._unit @ row), self._residual_sum, self._df,
                        self._noise)  # fmt: skip
        assert found is not None
        return found.interval(float(row @ self._coefficients), self.level).map(lambda value: float(2.0**value))

    @property
    def _df(self) -> int:
        return int(self.optima["reason"].eq("").sum()) - len(self._coefficients)

    def sentence(self) -> str:
        """The law in words."""
        of, names = self.of.rpartition(".")[2], " and ".join(name.rpartition(".")[2] for name in self.sizes)
        if isinstance(self.constant, Refusal):
            return f"no law of the best {of} in {names}: {self.constant.reason}"
        at = ", ".join(f"{name.rpartition('.')[2]} = {centre:.3g}" for name, centre in self.centres.items())
        exponents = ", ".join(
            f"exponent in {name.rpartition('.')[2]} {each.text('{:+.3f}')}"
            for name, each in self.exponents.items() if isinstance(each, Interval)
        )  # fmt: skip
        known = int(self.optima["reason"].eq("").sum())
        return (f"the best {of} is {self.constant.text()} at {at}; {exponents} "
                f"({100 * self.level:.0f} % intervals, {known} of {len(self.optima)} sizes, "
                f"{self.seeds} seed{'s' * (self.seeds != 1)})")  # fmt: skip


def hyper_law(
    runs: pd.DataFrame,
    of: str,
    sizes: Sequence[str],
    y: str = "val_loss",
    where: str | None = None,
    window: int = 2,
    level: float = LEVEL,
    bootstrap: int = 400,
) -> HyperLaw:
    """The power law of the best `of` in `sizes` (columns such as n_params_non_embedding, tokens).

    Intervals: Student's over a jackknife of whole seeds, every optimum and the law found again without each; with one
    seed, or where the optima miss the law by more than the seeds explain, from the residuals of the law. Values of
    `of` that are not above zero (a weight decay of 0) have no logarithm and are left out. `bootstrap`: of the
    intervals of the single optima. Raises UserError as `find_optima`, and for a size that is not a positive number.
    """
    runs = arguments.own_index(arguments.table_of(runs, "hyper law"))
    level = arguments.level_of(level, "hyper law")
    of, y = column(runs, of, "hyper law"), column(runs, y, "hyper law")
    asked = arguments.names_of(sizes, "hyper law", "sizes", "n_params_non_embedding")
    names = tuple(column(runs, name, "hyper law") for name in asked)
    if of in names:
        raise UserError(f"hyper law: {of} cannot be a size of its own law")
    rows, table, notes = _rows(runs, of, names, where)
    found = find_optima(rows, of, SIZE, y=y, window=window, bootstrap=bootstrap)
    optima = _table(found, table)
    good = optima["reason"].eq("").to_numpy()
    logs = np.log2(table[list(names)].to_numpy(dtype=float))
    seeds = found.panels[0].seeds
    centre = logs[good].mean(axis=0) if good.any() else logs.mean(axis=0)
    design = np.column_stack([np.ones(len(table)), logs - centre])
    centres = {name: float(2.0**value) for name, value in zip(names, centre, strict=True)}
    empty = np.zeros(design.shape[1])
    if reason := _why_not(design[good], names):
        refused = Refusal(reason)
        return HyperLaw(of, names, y, level, len(seeds), refused, dict.fromkeys(names, refused), centres, optima, notes,
                        empty, np.zeros((0, len(empty))), np.zeros((len(empty),) * 2), 0.0, Spread(0.0, 0))  # fmt: skip
    places = optima["log2"].to_numpy(dtype=float)
    solve = np.linalg.pinv(design[good])
    coefficients = solve @ places[good]
    residual_sum = float(((places[good] - design[good] @ coefficients) ** 2).sum())
    left_out = _without_each_seed(rows, found, window)
    noise = _noise_of_optima([each[good] for each in left_out])
    replicates = np.stack([solve @ each[good] for each in left_out]) if left_out else np.zeros((0, len(empty)))
    if len(replicates) and not np.isfinite(replicates).all():
        notes += ("without one of the seeds an optimum is lost, so intervals come from the law's residuals",)
        replicates, noise = replicates[:0], Spread(0.0, 0)
    unit, df = solve @ solve.T, int(good.sum()) - design.shape[1]
    spreads = [_spread(replicates[:, k], float(unit[k, k]), residual_sum, df, noise) for k in range(len(empty))]
    constant, *exponents = (
        Refusal("one seed and as many sizes as unknowns leave no error to judge by")
        if spread is None else spread.interval(float(value), level)
        for value, spread in zip(coefficients, spreads, strict=True)
    )  # fmt: skip
    at_centre = constant if isinstance(constant, Refusal) else constant.map(lambda value: float(2.0**value))
    return HyperLaw(of, names, y, level, len(seeds), at_centre, dict(zip(names, exponents, strict=True)), centres,
                    optima, notes, coefficients, replicates, unit, residual_sum, noise)  # fmt: skip


def _rows(
    runs: pd.DataFrame, of: str, names: tuple[str, ...], where: str | None
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """The runs that count, each with the number of its sizes, and the table of the sizes."""
    rows = runs[select(runs, where, "hyper law: where")] if where else runs
    rows = rows[finished(rows) | diverged(rows)]
    if not len(rows):
        raise UserError("hyper law: there are no finished runs")
    values = rows[list(names)].apply(pd.to_numeric, errors="coerce")
    if not (values > 0).all(axis=None):
        raise UserError(f"hyper law: {' and '.join(names)} must be numbers above 0 in every run")
    usable = pd.to_numeric(rows[of], errors="coerce") > 0
    if not usable.any():
        raise UserError(f"hyper law: no run has a number above 0 as its {of}")
    notes = () if usable.all() else (f"{int((~usable).sum())} runs with {of} = 0 have no logarithm and were left out",)
    rows, values = rows[usable], values[usable]
    table = values.drop_duplicates().sort_values(list(names)).reset_index(drop=True)
    number = values.merge(table.assign(**{SIZE: range(len(table))}), on=list(names), how="left")[SIZE]
    return rows.assign(**{SIZE: number.to_numpy()}), table, notes


def _table(found: Optima, table: pd.DataFrame) -> pd.DataFrame:
    """The sizes with their optima."""
    rows = []
    for size in found.panels[0].sizes:
        place = size.optimum
        reason = place.reason if isinstance(place, Refusal) else ""
        at = Estimate(math.nan) if isinstance(place, Refusal) else place
        rows.append({"log2": at.value, "optimum": 2.0**at.value, "lower": 2.0**at.lower, "upper": 2.0**at.upper,
                     "loss": size.loss, "reason": reason})  # fmt: skip
    return table.join(pd.DataFrame(rows))


def _why_not(design: Array, names: tuple[str, ...]) -> str | None:
    """The reason for which no law can be had from the sizes that have an optimum."""
    if len(design) < design.shape[1]:
        return f"it takes {design.shape[1]} sizes with an optimum, found {len(design)}"
    scaled = design / np.maximum(np.linalg.norm(design, axis=0), 1e-12)
    if np.linalg.cond(scaled) > TOGETHER:
        return f"{' and '.join(names)} hardly move apart" if len(names) > 1 else f"there is one value of {names[0]}"
    return None


def _without_each_seed(rows: pd.DataFrame, found: Optima, window: int) -> list[Array]:
    """log2 of every size's optimum without each seed in turn, NaN where there is none; [] with one seed."""
    seeds = found.panels[0].seeds
    if len(seeds) < 2:
        return []
    replicates = []
    for seed in seeds:
        again = find_optima(rows[rows["seed"] != seed], found.x, SIZE, y=found.y, window=window, bootstrap=0)
        places = {size.size: size.optimum for size in again.panels[0].sizes}
        at = [places.get(size.size, Refusal("no runs")) for size in found.panels[0].sizes]
        replicates.append(np.array([place.value if isinstance(place, Estimate) else np.nan for place in at]))
    return replicates


def _noise_of_optima(left_out: list[Array]) -> Spread:
    """The spread over seeds of one optimum in log2, by the jackknife, pooled over the sizes.

    Pooled, because it is what the law's misfit is held against: the spread of the coefficient in question alone would
    find a misfit just where chance made that spread small, and the intervals would come out too wide.
    """
    n, places = len(left_out), np.array(left_out)
    if n < 2:
        return Spread(0.0, 0)
    each = (n - 1) / n * ((places - places.mean(axis=0)) ** 2).sum(axis=0)
    return Spread(float(each.mean()), (n - 1) * places.shape[1])


def _spread(replicates: Array, weight: float, residual_sum: float, df: int, noise: Spread) -> Spread | None:
    """Of one linear combination of the coefficients: jackknife over seeds, or residuals (see `fitted_spread`)."""
    n = len(replicates)
    seeds = None
    if n > 1:
        seeds = Spread(float((n - 1) / n * ((replicates - replicates.mean()) ** 2).sum()), n - 1)
    return fitted_spread(seeds, residual_sum, df, weight, noise).spread
