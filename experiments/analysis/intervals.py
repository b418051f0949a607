"""Intervals from bootstrap draws: of parameters by percentiles, of one new run's loss by draws and errors combined."""

import numpy as np
import pandas as pd

from experiments.analysis.laws import Array

MOST_ERRORS = 64  # of the pool, evenly spaced by rank: more do not move a 95 % interval


def percentiles(draws: Array, level: float) -> tuple[Array, Array]:
    """Lower and upper percentile over the first axis; NaN without draws.

    The k-th of R draws counts as the k / (R + 1) quantile: the usual k / (R - 1) makes 99 draws cover 88 % for 90.
    """
    if not len(draws):
        empty = np.full(draws.shape[1:], np.nan)
        return empty, empty
    tail = 50.0 * (1.0 - level)
    lower, upper = np.percentile(draws, [tail, 100.0 - tail], axis=0, method="weibull")
    return lower, upper


def of_parameters(draws: pd.DataFrame, names: list[str], level: float) -> pd.DataFrame:
    """Percentile interval of each parameter: columns lower, upper; a row per parameter."""
    bounds = [percentiles(draws[name].to_numpy(), level) for name in names]
    return pd.DataFrame(bounds, columns=["lower", "upper"], index=pd.Index(names, name="parameter"), dtype=float)


def text(lower: float, upper: float, form: str) -> str:
    """`[1.2, 1.4]`, or that there is none."""
    if np.isnan(lower) or np.isnan(upper):
        return "no interval"
    return f"[{form.format(lower)}, {form.format(upper)}]"


def of_new_runs(spread: Array, pool: Array, scale: Array, level: float) -> tuple[Array, Array]:
    """Where the losses of new runs lie, (rows,) each: every draw's prediction `spread` (draws, rows) with every error
    of `pool` (ln measured - ln predicted, at the size of the noise) times that draw's noise level `scale` (draws,)."""
    middles = (np.arange(min(len(pool), MOST_ERRORS)) + 0.5) / min(len(pool), MOST_ERRORS)
    errors = np.quantile(pool, middles, method="inverted_cdf")
    combined = spread * np.exp(errors[:, None] * scale)[..., None]
    return percentiles(combined.reshape(combined.shape[0] * combined.shape[1], spread.shape[1]), level)
