"""How much each factor of a search matters, and a smooth surface through its trials."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from experiments.analysis.columns import diverged

FOLDS = 5
SMOOTHINGS = (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FEWEST_FOR_SURFACE = 8
Surface = Callable[[np.ndarray], np.ndarray]


def order_of_merit(runs: pd.DataFrame, loss: str) -> "pd.Series[float]":
    """Ranks from best to worst, equal losses sharing theirs; diverged runs last, NaN for runs without a loss."""
    losses = pd.to_numeric(runs[loss], errors="coerce").astype(float)
    return losses.where(~diverged(runs), np.inf).rank(method="average")


def influence(values: "pd.Series", ranks: "pd.Series[float]", is_choice: bool) -> float:
    """The share of the ranks' variance between bins of the factor (the correlation ratio), adjusted for their number.

    Numbers fall into two to five bins of equal count, choices into their values. NaN for fewer than 8 trials.
    """
    known = ranks.notna() & values.notna()
    values, ranks = values[known], ranks[known]
    n = len(ranks)
    if n < 8 or float(ranks.var()) == 0.0:
        return float("nan")
    bins = (
        values.map(str) if is_choice else pd.qcut(values, int(np.clip(n // 4, 2, 5)), labels=False, duplicates="drop")
    )
    groups = ranks.groupby(bins)
    k = groups.ngroups
    if k < 2 or n <= k:
        return 0.0
    between = float((groups.size() * (groups.mean() - ranks.mean()) ** 2).sum())
    ratio = between / float(((ranks - ranks.mean()) ** 2).sum())
    return max(0.0, 1 - (1 - ratio) * (n - 1) / (n - k))


def fitted_surface(points: np.ndarray, losses: np.ndarray) -> Surface | None:
    """A thin-plate spline through (n, 2) points of the unit square, its smoothing chosen by 5-fold cross-validation.

    None for too few points, or points on a line. (Wahba 1990, Spline Models for Observational Data.)
    """
    from scipy.interpolate import RBFInterpolator

    if len(points) < FEWEST_FOR_SURFACE or np.linalg.matrix_rank(points - points.mean(axis=0)) < 2:
        return None

    def spline(chosen: Sequence[bool] | np.ndarray, smoothing: float) -> Surface:
        return RBFInterpolator(
            points[chosen], losses[chosen], kernel="thin_plate_spline", smoothing=smoothing, degree=1
        )

    fold = np.arange(len(points)) % FOLDS
    best, least = SMOOTHINGS[-1], np.inf
    for smoothing in SMOOTHINGS:
        try:
            errors = [spline(fold != f, smoothing)(points[fold == f]) - losses[fold == f] for f in range(FOLDS)]
        except np.linalg.LinAlgError:
            continue
        error = float(np.mean(np.concatenate(errors) ** 2))
        if error < least:
            best, least = smoothing, error
    return spline(np.ones(len(points), dtype=bool), best) if np.isfinite(least) else None


def inside_hull(points: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Which of `where` lie within the convex hull of the points: beyond it a surface would be invented."""
    from scipy.spatial import Delaunay

    return Delaunay(points).find_simplex(where) >= 0
