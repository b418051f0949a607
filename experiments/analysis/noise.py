"""What the residuals of a fit say of the noise behind it: the pool of errors that bootstraps and predictions draw from.

The residuals of a fit are smaller than the noise, in two ways. Each point pulls the fit towards itself, so a residual
has the standard deviation of the noise times sqrt(1 - leverage). And a robust loss (least absolute deviations, Huber
with a small delta) runs exactly through as many points as it has parameters; those zeros are the fit's doing.
Everything here is batched over tables of one design, so that many simulated studies are judged at once.
"""

from dataclasses import dataclass

import numpy as np

from experiments.analysis.laws import Array

HIGHEST_LEVERAGE = 0.95  # a point that fixes a parameter by itself says next to nothing of the noise


@dataclass(frozen=True, eq=False)
class Noise:
    """`errors` (tables, points): ln measured - ln predicted at the size of the noise, the nearest to zero first;
    `skip` (tables,): how many of those are the fit's doing and are left out; `spread`, `bandwidth` (tables,): standard
    deviation of the rest and the width of the kernel that smooths them; `dof`: points - parameters."""

    errors: Array
    skip: Array
    spread: Array
    bandwidth: Array
    dof: int

    def draw(self, count: int, rng: np.random.Generator) -> Array:
        """`count` sets of fresh errors for each table, (tables, count, points), from the smoothed pool.

        Unsmoothed, the ties between drawn errors are what a robust fit runs through, and intervals come out too narrow.
        """
        tables, points = self.errors.shape
        left = (points - self.skip)[:, None, None]
        pick = self.skip[:, None, None] + (rng.random((tables, count, points)) * left).astype(np.intp)
        drawn = np.take_along_axis(self.errors[:, None, :], pick, axis=2)
        drawn = drawn + self.bandwidth[:, None, None] * rng.standard_normal(drawn.shape)
        return np.asarray(drawn * self._shrink()[:, None, None])

    def pool(self, table: int = 0) -> Array:
        """The errors of one table that count."""
        return np.asarray(self.errors[table, int(self.skip[table]) :])

    def _shrink(self) -> Array:
        """What keeps the variance as it was when the kernel is added."""
        ratio = self.bandwidth / np.maximum(self.spread, 1e-300)
        return np.asarray(1.0 / np.sqrt(1.0 + ratio**2))


def noise_of(residual: Array, jacobian: Array, delta: float) -> Noise:
    """The noise behind fits with these residuals (tables, points) and Jacobians (tables, points, parameters) of ln L;
    `delta`: threshold of the loss (inf for squares, 0 for absolute values)."""
    points, parameters = jacobian.shape[1:]
    errors = residual / np.sqrt(1.0 - leverage(jacobian))
    nearest = np.argsort(np.abs(residual), axis=1)
    errors = np.take_along_axis(errors, nearest, axis=1)
    skip = _interpolated(residual, parameters, delta)
    counts = np.arange(points) >= skip[:, None]
    kept = np.where(counts, errors, np.nan)
    spread = np.nanstd(kept, axis=1)
    quarter, three = np.nanquantile(kept, [0.25, 0.75], axis=1)
    robust = np.minimum(spread, (three - quarter) / 1.349)
    bandwidth = 0.9 * np.where(robust > 0, robust, spread) * counts.sum(axis=1) ** -0.2  # Silverman 1986, eq. 3.31
    return Noise(errors, skip, spread, bandwidth, points - parameters)


def leverage(jacobian: Array) -> Array:
    """Diagonal of the hat matrix J (J'J)^-1 J', (tables, points): how far each point pulls the fit to itself."""
    u, s, _ = np.linalg.svd(jacobian, full_matrices=False)
    told = s > 1e-10 * s[:, :1]
    return np.minimum((u**2 * told[:, None, :]).sum(axis=2), HIGHEST_LEVERAGE)


def _interpolated(residual: Array, parameters: int, delta: float) -> Array:
    """How many residuals are near zero because the loss runs through points: none for squares, one per parameter when
    all others lie outside delta."""
    points = residual.shape[1]
    outside = (np.abs(residual) > max(delta, 1e-7)).sum(axis=1)
    share = np.minimum(1.0, outside / max(1, points - parameters))
    return np.minimum(np.rint(parameters * share).astype(np.intp), points - 2)


def dispersion(noise: Noise, residual: Array, delta: float) -> Array:
    """E psi^2 / E psi' under the smoothed pool, (tables,): twice the rise of the objective over it is F(1, dof).

    psi is the derivative of the loss: for squares this is the variance of the noise; for absolute values (delta = 0,
    the objective being the sum of |r|) it is 1 / (2 density at 0). Schrader and Hettmansperger 1980, Biometrika 67, 93.
    """
    if np.isinf(delta):
        return np.asarray((residual**2).sum(axis=1) / noise.dof)
    from scipy.special import ndtr

    shrink = noise._shrink()[:, None]
    at, width = noise.errors * shrink, np.maximum(noise.bandwidth[:, None] * shrink, 1e-300)
    weight = (np.arange(at.shape[1]) >= noise.skip[:, None]) / (at.shape[1] - noise.skip)[:, None]
    if delta == 0:
        density = np.exp(-0.5 * (at / width) ** 2) / (np.sqrt(2 * np.pi) * width)
        return np.asarray(1.0 / (2.0 * (density * weight).sum(axis=1)))
    high, low = (delta - at) / width, (-delta - at) / width
    inside = ndtr(high) - ndtr(low)
    bell_high, bell_low = (np.exp(-0.5 * edge**2) / np.sqrt(2 * np.pi) for edge in (high, low))
    # Second moment of a normal variable between the two thresholds (its mean `at`, its width `width`).
    middle = (at**2 + width**2) * inside + width * ((at - delta) * bell_low - (at + delta) * bell_high)
    psi_squared = middle + delta**2 * (1.0 - inside)
    return np.asarray((psi_squared * weight).sum(axis=1) / (inside * weight).sum(axis=1))
