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

from experiments.analysis.fit import fit
from experiments.analysis.fitted import Fit
from experiments.analysis.laws import Array, Law
from nanogpt.config import UserError

TIGHT = 1e-15


def fit_on_loss(law: Law | str, df: pd.DataFrame, **options: Any) -> Fit:
    """`fit` by least squares on ln L, from there to the least squares on L. No bootstrap, and so no intervals.

    Options as for `fit`, but for `loss`, `delta` and `bootstrap`, which are settled here. Raises UserError as `fit`.
    """
    settled = {"loss", "delta"} & set(options)
    if settled or options.get("bootstrap"):
        name = "bootstrap" if not settled else settled.pop()
        raise UserError(
            f"fit_on_loss: {name} cannot be chosen: it is plain least squares on the loss, without resamples"
        )
    start = fit(law, df, **{**options, "loss": "lsq", "bootstrap": 0})
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
    return replace(start, params=natural(found.x), points=points, objective=float(found.cost), on="L",
                   converged=bool(start.converged and found.success), reason=reason)  # fmt: skip
