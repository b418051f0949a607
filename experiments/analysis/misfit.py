"""Does the law bend away from its data? Two tests of the form of a fit, which none of its intervals can see.

Smooth: the residuals are regressed on powers and products of the ln inputs, beyond what the law's own parameters can
follow; an F test says whether these explain more than noise would (Ramsey 1969, J. R. Stat. Soc. B 31, 350, with the
derivatives at the optimum for the regressors of a linear model). Replicates: where runs repeat their inputs, the misses
of the means are held against the spread within (Neill 1988, Annals of Statistics 16, 733). Residuals beyond `OUTLIER`
robust standard deviations are pulled in to that: a run that a robust loss shrugs off is no bend.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.analysis.laws import Array
from experiments.analysis.noise import leverage
from experiments.analysis.student import MISFIT

if TYPE_CHECKING:
    from experiments.analysis.fitted import Fit

OUTLIER = 3.0
MOST_DIRECTIONS = 4  # of bending: more would spread a real bend thin
FEWEST_LEFT = 3  # degrees of freedom below which nothing is told
REPEATED = 3  # degrees of freedom between replicates from which they are a yardstick
LEAST = 1e-6  # relative misses below this are rounding, whatever their shape
FOLLOWED = 1e-3  # share of a direction that the law cannot follow, below which it is the law's own


@dataclass(frozen=True)
class Misfit:
    """`p`: how often noise alone would show as much, over all `tests` made; `bend`: the largest relative miss that the
    smooth terms explain at a point."""

    p: float
    bend: float
    tests: tuple[str, ...]

    @property
    def bends(self) -> bool:
        """Whether the law is wrong by more than noise explains."""
        return self.p < MISFIT

    @property
    def words(self) -> str:
        """The finding as a sentence."""
        if not self.bends:
            return f"no bend found in the residuals ({self._how})"
        size = f", by up to {self.bend:.2g} %" if self.bend >= 0.01 else ""
        return (f"the law bends away from the data{size} ({self._how}): its intervals take the form as given and are "
                "too narrow; the held-out error is what to quote")  # fmt: skip

    @property
    def _how(self) -> str:
        return f"F test{'s' * (len(self.tests) > 1)} of residuals {' and '.join(self.tests)}, p = {self.p:.2g}"


def misfit(fit: "Fit") -> Misfit | None:
    """The tests of one fit; None where they say nothing: clusters, points of one run, too few points, no noise."""
    residual: Array = np.asarray(fit.residuals, dtype=np.float64)
    if not fit.independent or math.sqrt(float(np.mean(residual**2))) < LEAST:
        return None
    jacobian = fit.problem.model.expand(fit.theta).jacobian
    errors = _without_outliers(residual, jacobian)
    own = _directions(jacobian[0], 1e-10)
    left = errors - own @ (own.T @ errors)
    found = {
        "against smooth terms in the inputs": _smooth(left, own, _terms(fit)),
        "against replicates": _replicates(left, own, _groups(fit)),
    }
    made = {name: result for name, result in found.items() if result is not None}
    if not made:
        return None
    p = min(1.0, len(made) * min(p for p, _ in made.values()))  # Bonferroni
    return Misfit(p, 100.0 * math.expm1(max(bend for _, bend in made.values())), tuple(made))


def _without_outliers(residual: Array, jacobian: Array) -> Array:
    """Residuals pulled in to a few robust standard deviations."""
    size = np.abs(residual / np.sqrt(1.0 - leverage(jacobian)[0]))
    spread = 1.4826 * float(np.median(np.sort(size)[min(jacobian.shape[2], len(size) - 2) // 2 :]))
    return np.clip(residual, -OUTLIER * spread, OUTLIER * spread) if spread > 0 else residual


def _directions(columns: Array, least: float) -> Array:
    """An orthonormal basis of the columns, (points, rank), the strongest first."""
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(u[:, s > least * max(float(s.max(initial=0.0)), 1e-300)])


def _smooth(left: Array, own: Array, terms: Array) -> tuple[float, float] | None:
    """p and the largest bend: do directions that the law cannot follow explain the residuals?"""
    free = terms - own @ (own.T @ terms)
    free = free[:, np.linalg.norm(free, axis=0) > FOLLOWED]
    if not free.size:
        return None
    freedom = len(left) - own.shape[1]
    extra = _directions(free, FOLLOWED)[:, : min(MOST_DIRECTIONS, max(1, freedom // 4))]
    rest = freedom - extra.shape[1]
    if rest < FEWEST_LEFT:
        return None
    bend = extra @ (extra.T @ left)
    return _f_test(float(bend @ bend), extra.shape[1], float((left - bend) @ (left - bend)), rest), _largest(bend)


def _replicates(left: Array, own: Array, group: npt.NDArray[np.intp]) -> tuple[float, float] | None:
    """p and the largest miss of a mean: do means of equal inputs miss by more than the runs differ?"""
    means = pd.Series(left).groupby(group).transform("mean").to_numpy(dtype=float)
    count = len(np.unique(group))
    within, between = len(left) - count, count - own.shape[1]
    if within < REPEATED or between < 1:
        return None
    return _f_test(float(means @ means), between, float((left - means) @ (left - means)), within), 0.0


def _f_test(explained: float, directions: int, unexplained: float, freedom: int) -> float:
    from scipy.stats import f

    return float(f.sf(explained / directions / max(unexplained / freedom, 1e-300), directions, freedom))


def _largest(bend: Array) -> float:
    return float(np.abs(bend).max())


def _terms(fit: "Fit") -> Array:
    """Powers up to the third and products of the ln inputs, and the labels apart, as columns of length 1."""
    columns = []
    ln_x = [np.log(fit.points[name].to_numpy(dtype=float)) for name in fit.law.columns]
    scaled = [(values - values.mean()) / values.std() for values in ln_x]
    for i, one in enumerate(scaled):
        columns += [one**power for power in ((2, 3) if len(scaled) > 1 else (2, 3, 4))]
        columns += [one * other for other in scaled[:i]]
    for name in fit.law.label_columns:
        for label in sorted(fit.points[name].astype(str).unique())[1:]:
            member = (fit.points[name].astype(str) == label).to_numpy(dtype=float)
            columns += [member, *(member * one for one in scaled)]
    terms = np.stack(columns, axis=1)
    return np.asarray(terms / np.linalg.norm(terms, axis=0))


def _groups(fit: "Fit") -> npt.NDArray[np.intp]:
    """A code per point: equal where all inputs are."""
    names = [*fit.law.columns, *fit.law.label_columns]
    return np.asarray(fit.points.groupby(names, sort=False).ngroup(), dtype=np.intp)


def improbable(inside: int, n: int, level: float = 0.95) -> bool:
    """Would honest intervals hold this few of `n` values less than one time in twenty? (binomial tail)"""
    return sum(math.comb(n, k) * level**k * (1 - level) ** (n - k) for k in range(inside + 1)) < MISFIT


def held_out_misfit(table: pd.DataFrame) -> str | None:
    """What held-out runs (columns error, inside) say against a law: too few lie in their intervals; whether on one
    side."""
    errors, n, held = table["error"], len(table), int(table["inside"].sum())
    if not n or not improbable(held, n):
        return None
    side = "too high" if (errors > 0).all() else "too low" if (errors < 0).all() else ""
    signs = f", and the law predicts all of them {side}: it bends away from the data" if side and n > 1 else ""
    return f"only {held} of {n} held-out losses lie inside their 95 % interval{signs}; these intervals are too narrow."
