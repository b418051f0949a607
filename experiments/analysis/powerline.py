"""A power law through optima: ln y = ln G + a ln C by weighted least squares, with one line per disturbed table."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experiments.analysis import intervals
from experiments.analysis.laws import Array


@dataclass(frozen=True, eq=False)
class PowerLine:
    """y = exp(`ln_coefficient`) * C^`exponent` (C in FLOPs). `draws`: (draws, 2) of ln coefficient and exponent.

    `scatter`: standard error of the exponent from the points' scatter about the line, over that from the noise of each
    point; NaN where one is not known. Above 1 the draws have been widened by it.
    """

    exponent: float
    ln_coefficient: float
    draws: Array
    points: int
    scatter: float

    def at(self, flops: float | Array) -> Array:
        """y at each compute."""
        return np.asarray(np.exp(self.ln_coefficient + self.exponent * np.log(flops)))

    def draws_at(self, flops: float | Array) -> Array:
        """y at each compute for every draw: (draws, computes)."""
        at = np.log(np.atleast_1d(np.asarray(flops, dtype=float)))
        return np.asarray(np.exp(self.draws[:, :1] + self.draws[:, 1:] * at))

    def conf_int(self, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of the exponent; NaN without draws."""
        return percentiles(self.draws[:, 1], level)


def fit_line(
    flops: npt.ArrayLike,
    y: npt.ArrayLike,
    weights: Array | None = None,
    *,
    draws: tuple[Array, Array] | None = None,
    independent: int | None = None,
) -> PowerLine:
    """The line through (C, y), weighted. `draws`: computes and (draws, computes) values of y, NaN where there is none,
    fitted the same way; draws that leave fewer than two points count for nothing. `independent`: how many of the points
    say something of their own; default all.
    """
    x, values = np.log(np.asarray(flops, dtype=float)), np.log(np.asarray(y, dtype=float))
    weights = np.ones_like(x) if weights is None else weights
    intercept, slope = (float(part[0]) for part in _lines(x, values[None], weights))
    if draws is None or not len(draws[1]):
        return PowerLine(slope, intercept, np.zeros((0, 2)), len(x), float("nan"))
    x_draws = np.log(np.asarray(draws[0], dtype=float))
    each = weights if len(x_draws) == len(x) else np.ones_like(x_draws)
    lines = np.stack(_lines(x_draws, np.log(draws[1]), each), axis=1)
    lines = lines[np.isfinite(lines).all(axis=1)]
    external = _external_error(x, values - intercept - slope * x, weights, independent or len(x))
    internal = float(lines[:, 1].std()) if len(lines) else 0.0
    scatter = external / internal if internal > 0 else float("nan")
    return PowerLine(slope, intercept, _widened(lines, intercept, slope, scatter), len(x), scatter)


def _external_error(x: Array, residuals: Array, weights: Array, independent: int) -> float:
    """Standard error of the slope from the residuals about the line; NaN where two points leave none."""
    if independent <= 2:
        return float("nan")
    share = weights / weights.sum()
    spread = float((share * (x - (share * x).sum()) ** 2).sum())
    return float(np.sqrt((share * residuals**2).sum() / (independent - 2) / spread))


def _lines(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Intercepts and slopes of weighted lines through rows of y, NaN skipped and NaN where two points are not left."""
    known = np.isfinite(y)
    w = np.where(known, weights, 0.0)
    filled = np.where(known, y, 0.0)
    enough = known.sum(axis=1) >= 2
    total = np.where(enough, w.sum(axis=1), np.nan)
    middle = (w * x).sum(axis=1) / total
    level = (w * filled).sum(axis=1) / total
    away = x - middle[:, None]
    spread = (w * away**2).sum(axis=1)
    slope = (w * away * (filled - level[:, None])).sum(axis=1) / np.where(spread > 0, spread, np.nan)
    return level - slope * middle, slope


def _widened(lines: Array, intercept: float, slope: float, scatter: float) -> Array:
    """Draws moved away from the fitted line where the points scatter more than their noise explains (Birge 1932, Phys.
    Rev. 40, 207: the larger of the internal and the external error counts)."""
    centre = np.array([intercept, slope])
    return np.asarray(centre + (lines - centre) * (scatter if scatter > 1 else 1.0))


def percentiles(draws: Array, level: float) -> tuple[float, float]:
    """The middle `level` of those draws (draws,) that gave a value; NaN without any."""
    lower, upper = intervals.percentiles(draws[np.isfinite(draws)], level)
    return float(lower), float(upper)
