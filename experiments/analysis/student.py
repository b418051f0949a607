"""Intervals of numbers that come from few seeds or few points: Student's t, with the degrees of freedom there are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as fisher
from scipy.stats import t as student

Array = NDArray[np.floating[Any]]
LEVEL = 0.90  # of the intervals that comparisons and claims are judged by
ROUNDING = 1e-6  # relative differences of losses and of multipliers below this are arithmetic, not findings
MISFIT = 0.05  # a misfit that noise between seeds would show less often than this is one


@dataclass(frozen=True)
class Interval:
    """A number with its two-sided interval at `level`. An end may be infinite: the data do not bound it there."""

    value: float
    lower: float
    upper: float
    level: float = LEVEL

    def map(self, rising: Callable[[float], float]) -> "Interval":
        """The interval of a rising function of the number."""
        return Interval(rising(self.value), rising(self.lower), rising(self.upper), self.level)

    def text(self, form: str = "{:.3g}") -> str:
        """`1.23 [1.1, 1.4]`, or in words that there is no interval."""
        if math.isnan(self.lower) and math.isnan(self.upper):
            return f"{form.format(self.value)} (no interval)"
        return f"{form.format(self.value)} [{form.format(self.lower)}, {form.format(self.upper)}]"


@dataclass(frozen=True)
class Spread:
    """The variance of an estimate, and the degrees of freedom it is known with."""

    variance: float
    df: float

    def interval(self, value: float, level: float = LEVEL) -> Interval:
        half = float(student.ppf(0.5 + level / 2, self.df)) * math.sqrt(self.variance)
        return Interval(value, value - half, value + half, level)


def seed_spread(influences: Sequence[Array]) -> Spread | None:
    """The spread of a statistic over seeds; None with one seed.

    Each array holds what every seed of one independent group moves the statistic by (their mean is zero): one array
    where seeds are paired, one per variant where they are not (degrees of freedom by Welch and Satterthwaite).
    """
    if any(len(group) < 2 for group in influences):
        return None
    parts = [(float(np.var(group, ddof=1)) / len(group), len(group) - 1) for group in influences]
    variance = sum(part for part, _ in parts)
    if variance <= 0:
        return Spread(0.0, sum(df for _, df in parts))
    return Spread(variance, variance**2 / sum(part**2 / df for part, df in parts))


@dataclass(frozen=True)
class FittedSpread:
    """The spread to use for one coefficient of a least-squares fit, and whether the fit misses by more than noise."""

    spread: Spread | None
    misfits: bool


def fitted_spread(seeds: Spread | None, residual_sum: float, df: int, weight: float, noise: Spread) -> FittedSpread:
    """The spread of a coefficient fitted to means over seeds: that between seeds, unless the form misses the means.

    `residual_sum` of squares has `df` degrees of freedom, `weight` is the coefficient's variance for residuals of
    variance 1, `noise` that of one mean (of a logarithm) as the seeds have it, at least that of arithmetic. With one
    seed, or where an F test finds that the misfit is more than noise, the residuals are what is known of the error.
    """
    residual = Spread(weight * residual_sum / df, df) if df > 0 else None
    if seeds is None:
        return FittedSpread(residual, False)
    if residual is None or noise.variance <= 0:
        return FittedSpread(seeds, False)
    misfits = bool(fisher.sf(residual_sum / df / max(noise.variance, ROUNDING**2), df, noise.df) < MISFIT)
    wider = residual.interval(0.0).upper > seeds.interval(0.0).upper
    return FittedSpread(residual if misfits and wider else seeds, misfits)


def fieller(tops: Array, bottoms: Array, level: float = LEVEL) -> Interval:
    """The ratio of two means that were measured together, with Fieller's interval (1954): exact for normal pairs.

    Where the bottom's mean is not told from zero, the ratio has no upper bound, and says so.
    """
    n, top, bottom = len(tops), float(tops.mean()), float(bottoms.mean())
    if n < 2:
        return Interval(top / bottom, 0.0, math.inf, level)
    covariance = np.cov(tops, bottoms) / n
    t2 = float(student.ppf(0.5 + level / 2, n - 1)) ** 2
    a = bottom**2 - t2 * covariance[1, 1]
    b = top * bottom - t2 * covariance[0, 1]
    c = top**2 - t2 * covariance[0, 0]
    if a <= 0 or bottom <= 0:
        return Interval(top / bottom if bottom > 0 else math.inf, 0.0, math.inf, level)
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return Interval(top / bottom, max((b - root) / a, 0.0), (b + root) / a, level)
