"""Least squares on the loss itself instead of on its logarithm: the protocol of fits that were made with curve_fit.

On ln L every run counts by its relative error, which is right where the noise is relative. Some published figures were
made on L, where runs of high loss count more, and with few points that shows: held-out errors of .71 % there are
1.05 % on ln L (Gadre et al. 2024, arXiv 2403.08540). To reproduce such a figure, not to make new ones.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from experiments.analysis import arguments
from experiments.analysis.fit import fit
from experiments.analysis.fitted import Fit
from experiments.analysis.laws import Array, Law
from experiments.analysis.problem import make_problem
from experiments.analysis.resample import drawn, noise_levels
from nanogpt.config import UserError

TIGHT = 1e-15
TINY = 1e-9  # a start on the edge of the box is no start


def fit_on_loss(law: Law | str, df: pd.DataFrame, **options: Any) -> Fit:
    """`fit` by least squares on ln L, from there to the least squares on L; `bootstrap` resamples of pairs (default 0).

    Options as for `fit`, but for `loss`, `delta`, `intervals` and `resample`, which are settled here. Raises UserError
    as `fit`.
    """
    settled = {"loss", "delta", "intervals"} & set(options)
    if settled or options.get("resample") == "residual":
        name = settled.pop() if settled else "resample"
        raise UserError(
            f"fit_on_loss: {name} cannot be chosen: it is plain least squares on the loss, with pairs drawn"
        )
    draws = arguments.resamples(options.get("bootstrap", 0), "fit_on_loss")
    options = {name: each for name, each in options.items() if name != "resample"}
    start = fit(law, df, **{**options, "loss": "lsq", "bootstrap": 0, "intervals": "bootstrap"})
    measured = start.points[start.y].to_numpy(dtype=float)
    names, values = list(start.params), np.array(list(start.params.values()))
    positive = values > 0

    def natural(theta: Array) -> dict[str, float]:
        at = np.where(positive, np.exp(np.where(positive, theta, 0.0)), theta)
        return dict(zip(names, map(float, at), strict=True))

    def miss(theta: Array) -> Array:
        return start.law.predict(natural(theta), start.points) - measured

    first = np.where(positive, np.log(np.where(positive, values, 1.0)), values)
    found = least_squares(miss, first, jac="3-point", x_scale="jac", ftol=TIGHT, xtol=TIGHT, gtol=TIGHT, max_nfev=2000)
    predicted = found.fun + measured
    points = start.points.assign(predicted=predicted, residual=np.log(measured) - np.log(predicted))
    reason = "converged" if found.success else f"stopped: {found.message}"
    done = replace(start, params=natural(found.x), points=points, objective=float(found.cost), on="L", resample="pairs",
                   converged=bool(start.converged and found.success), reason=reason)  # fmt: skip
    return _with_draws(done, draws, options) if draws else done


def _with_draws(fit: Fit, draws: int, options: dict[str, Any]) -> Fit:
    """The fit with a pairs bootstrap: each resample refitted from the optimum of all points."""
    problem = make_problem(fit.law, fit.points, fit.y)
    cluster = options.get("cluster")
    counts = drawn(fit.points, len(fit.params), draws, cluster, fit.seed)
    inside = np.clip(problem.coordinates(fit.params)[0], problem.lower + TINY, problem.upper - TINY)
    measured = np.exp(problem.ln_y)
    thetas, good = np.empty((draws, len(inside))), np.empty(draws, dtype=bool)
    for i, root in enumerate(np.sqrt(counts)):

        def miss(theta: Array, root: Array = root) -> Array:
            return np.asarray(root * (np.exp(problem.model.log_loss(theta[None])[0]) - measured))

        def slopes(theta: Array, root: Array = root) -> Array:
            at = problem.model.expand(theta[None])
            return np.asarray((root * np.exp(at.log_loss[0]))[:, None] * at.jacobian[0])

        found = least_squares(
            miss, inside, slopes, bounds=(problem.lower, problem.upper), x_scale="jac", ftol=1e-12, xtol=1e-12,
            gtol=1e-12, max_nfev=500,
        )  # fmt: skip
        thetas[i], good[i] = found.x, found.success
    scales = noise_levels(draws, max(1, len(fit.points) - len(inside)), np.random.default_rng([fit.seed, 1]))
    return replace(fit, draws=pd.DataFrame(problem.natural(thetas)), scales=scales, draws_converged=float(good.mean()))
