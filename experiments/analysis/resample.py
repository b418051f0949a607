"""Bootstraps: how resamples of a table are drawn, and many of them refitted at once.

`residual`: the inputs stay, the losses are the fitted ones times fresh noise from the fit's residuals (noise.py). Each
resample has a noise level of its own, drawn from what the residuals leave open about it, so plain percentiles of the
refits have Student's tails. `pairs`: points, or whole clusters of them, drawn with replacement, as published
protocols do.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.analysis.laws import Array
from experiments.analysis.noise import Noise
from experiments.analysis.problem import Problem
from experiments.analysis.solver import WARM, huber, solve
from nanogpt.config import UserError

Resample = Literal["residual", "pairs"]
RESAMPLES = ("residual", "pairs")
CHUNK = 4_000_000  # floats per temporary array while resamples are solved
SAME = 1e-3  # distance in coordinates within which two optima of one table are one
RIVAL = 2.0  # times as bad as its own fit is on a resample: beyond, another optimum of the table is not tried


@dataclass(frozen=True, eq=False)
class Draws:
    """Refits of resamples: `theta` (draws, parameters), `scale` (draws,), the noise level of each as a multiple of the
    fit's, and the share of the refits that converged (NaN without any)."""

    theta: Array
    scale: Array
    converged: float


@dataclass(frozen=True)
class Plan:
    """A bootstrap to do: its kind, how many draws, the column of clusters, the seed."""

    how: Resample
    draws: int
    cluster: str | None
    seed: int


@dataclass(frozen=True)
class Objective:
    """What is minimised: the loss by name, its threshold."""

    loss: str
    delta: float

    @property
    def threshold(self) -> float:
        """Where residuals start to count linearly: inf for squares, 0 for absolute values."""
        return {"lsq": np.inf, "lad": 0.0}.get(self.loss, self.delta)


def noise_levels(draws: int, dof: int, rng: np.random.Generator) -> Array:
    """sqrt(dof / chi^2_dof), once per draw: the noise's level given the residuals', as Student's t has it.

    Evenly spaced quantiles in random order: fewer draws say as much.
    """
    from scipy.stats import chi2

    shares = (rng.permutation(draws) + 0.5) / max(draws, 1)
    return np.sqrt(dof / np.maximum(chi2.ppf(shares, dof), 1e-3))


def by_residuals(
    problem: Problem, theta: Array, optima: Array, noise: Noise, objective: Objective, draws: int, seed: list[int]
) -> Draws:
    """Residual bootstrap of one fit or of many: `theta` (tables, parameters) with the noise of each.

    The draws of a table stand together: theta (tables * draws, parameters).
    """
    rng = np.random.default_rng(seed)
    tables, points = noise.errors.shape
    scale = np.stack([noise_levels(draws, noise.dof, rng) for _ in range(tables)])
    fitted = problem.model.log_loss(theta)
    ln_y = (fitted[:, None] + scale[..., None] * noise.draw(draws, rng)).reshape(-1, points)
    weights = np.ones((len(ln_y), points))
    return refit(
        replace(problem, ln_y=ln_y), np.repeat(theta, draws, axis=0), optima, weights, objective, scale.ravel()
    )


def resample_fit(
    problem: Problem, theta: Array, optima: Array, noise: Noise, objective: Objective, used: pd.DataFrame, plan: Plan
) -> Draws:
    """The bootstrap of one fit, as planned: `theta` (1, parameters), `optima` those that its starts found."""
    if plan.how == "residual":
        return by_residuals(problem, theta, optima, noise, objective, plan.draws, [plan.seed, 0])
    weights = drawn(used, theta.shape[1], plan.draws, plan.cluster, plan.seed)
    scale = noise_levels(plan.draws, noise.dof, np.random.default_rng([plan.seed, 1]))
    return refit(problem, np.tile(theta, (plan.draws, 1)), optima, weights, objective, scale)


def drawn(used: pd.DataFrame, parameters: int, draws: int, cluster: str | None, seed: int) -> Array:
    """Multinomial weights (draws, points): how often each point, or each cluster with all its points, was drawn.

    A resample with fewer distinct points than parameters has no optimum and is drawn again.
    """
    rng = np.random.default_rng([seed, 0])
    groups = used[cluster].factorize()[0] if cluster else np.arange(len(used))
    n_groups = int(groups.max()) + 1
    if cluster and draws and n_groups < 3:
        raise UserError(f"fit: cluster {cluster} has {n_groups} distinct values; a bootstrap needs at least 3")
    weights = np.zeros((draws, len(used)))
    for i in range(draws):
        for _ in range(100):
            weights[i] = np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)[groups]
            if np.count_nonzero(weights[i]) >= parameters:
                break
    return weights


def refit(problem: Problem, near: Array, optima: Array, weights: Array, objective: Objective, scale: Array) -> Draws:
    """Refit every resample from its table's own fit `near` (draws, parameters), and from the best of the table's other
    `optima` (some, parameters) for the resample, where that is a rival; the better result counts."""
    draws, size = near.shape
    if not draws:
        return Draws(np.zeros((0, size)), scale, float("nan"))
    chosen, converged = np.zeros((draws, size)), np.zeros(draws, dtype=bool)
    step = max(1, CHUNK // weights.shape[1])
    for begin in range(0, draws, step):
        part = np.arange(begin, min(begin + step, draws))
        rivals, tried = _rivals(problem.members(part), near[part], optima, weights[part], objective)
        member = part[np.append(np.arange(len(part)), tried)]
        found = solve(problem.members(member), np.concatenate([near[part], rivals]), weights[member], objective.loss,
                      objective.delta, approach=WARM)  # fmt: skip
        best, second = np.arange(len(part)), len(part) + np.arange(len(tried))
        better = found.objective[second] < found.objective[tried]
        best[tried[better]] = second[better]
        chosen[part], converged[part] = found.theta[best], found.converged[best]
    return Draws(chosen, scale, float(converged.mean()))


def _rivals(
    problem: Problem, near: Array, optima: Array, weights: Array, objective: Objective
) -> tuple[Array, npt.NDArray[np.intp]]:
    """For the resamples where another of the `optima` is worth a second launch: it, (some, parameters), and which
    resamples those are."""
    elsewhere = np.abs(optima[:, None] - near).max(axis=2) > SAME  # (optima, draws)
    optima, elsewhere = optima[elsewhere.any(axis=1)], elsewhere[elsewhere.any(axis=1)]
    if not len(optima):
        return near[:0], np.arange(0)
    guesses = problem.model.log_loss(optima)
    misfit = np.stack([huber(guess - problem.ln_y, weights, objective.delta) for guess in guesses])
    misfit = np.where(elsewhere, misfit, np.inf)
    own = huber(problem.residuals(near), weights, objective.delta)
    tried = np.flatnonzero(misfit.min(axis=0) < RIVAL * own)
    return optima[misfit[:, tried].argmin(axis=0)], tried
