"""Many simulated studies of a planted law, fitted and resampled at once: how often intervals cover the truth.

Does what `fit`, `Fit.conf_int`, `Fit.profile` and `Fit.predict` do, by the same functions, for all studies in a batch;
test_coverage.py holds the two against each other.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from experiments.analysis.intervals import of_new_runs, percentiles
from experiments.analysis.laws import Array, Design, Law
from experiments.analysis.noise import Noise, noise_of
from experiments.analysis.problem import Problem, make_problem
from experiments.analysis.profile import deviance, held, own_coordinate, quantile, valley
from experiments.analysis.resample import Objective, by_residuals
from experiments.analysis.solver import solve

STARTS = 2  # of the law's own, beside the truth


@dataclass(frozen=True, eq=False)
class Studies:
    """Simulated studies of one design, fitted: `theta` (studies, parameters) and `objective` (studies,) of each, its
    noise, and `fresh` (studies,), ln of the loss that the held-out run of each turned out to have. `clean`: the table
    without noise."""

    law: Law
    truth: dict[str, float]
    held_out: pd.DataFrame
    clean: pd.DataFrame
    problem: Problem
    loss: Objective
    first: Array
    theta: Array
    objective: Array
    noise: Noise
    fresh: Array


def simulate(law: Law, design: Design, studies: int, loss: Objective, seed: int, errors: str = "normal") -> Studies:
    """Plant the law, add noise, fit every study from the truth and from the best starts of the table without noise.

    That the starts alone find the optimum is another test's matter (a law's conformance); here they would cost most.
    """
    rng, law = np.random.default_rng(seed), law.bind(design.table)
    ln_truth = np.log(law.predict(design.params, design.table))
    noise = design.noise * _errors(rng, (studies, len(design.table)), errors)
    fresh = np.log(law.predict(design.params, design.held_out))[0] + design.noise * _errors(rng, (studies,), errors)
    clean = design.table.assign(val_loss=np.exp(ln_truth))
    problem = make_problem(law, clean, "val_loss")
    first = np.concatenate([problem.coordinates(design.params), problem.starts(STARTS)])
    problem = replace(problem, ln_y=ln_truth + noise)
    theta, objective = _fit(problem, first, loss)
    of = noise_of(-problem.residuals(theta), problem.model.expand(theta).jacobian, loss.threshold)
    return Studies(law, dict(design.params), design.held_out, clean, problem, loss, first, theta, objective, of, fresh)


def _errors(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    """Errors of unit size: normal, or heavy-tailed, or skewed upwards, with median 0."""
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "heavy":
        return rng.standard_t(3, shape)
    return np.asarray(rng.gamma(2.0, 1.0, shape) - 1.678) / np.sqrt(2.0)


def _fit(problem: Problem, first: Array, loss: Objective) -> tuple[Array, Array]:
    """The best of all starts, for every study."""
    studies, points = problem.ln_y.shape
    members = problem.members(np.repeat(np.arange(studies), len(first)))
    launch = np.tile(first, (studies, 1))
    found = solve(members, launch, np.ones((len(launch), points)), loss.loss, loss.delta)
    best = found.objective.reshape(studies, -1).argmin(axis=1) + len(first) * np.arange(studies)
    return found.theta[best], found.objective[best]


@dataclass(frozen=True)
class Coverage:
    """Share of the studies whose interval holds the truth, by parameter; `prediction` is of the held-out run."""

    parameters: dict[str, float]
    prediction: float
    converged: float

    @property
    def shares(self) -> dict[str, float]:
        """All of them by name."""
        return {**self.parameters, "prediction": self.prediction}


def by_bootstrap(done: Studies, level: float, draws: int, seed: int) -> Coverage:
    """Coverage of percentile intervals over the residual bootstrap, from the optimum of each study alone."""
    studies = len(done.theta)
    found = by_residuals(done.problem, done.theta, done.theta[:0], done.noise, done.loss, draws, [seed, 0])
    params = done.problem.natural(found.theta)
    inside = {}
    for name, values in params.items():
        low, high = percentiles(values.reshape(studies, draws).T, level)
        inside[name] = float(np.mean((low <= done.truth[name]) & (done.truth[name] <= high)))
    return Coverage(inside, _predicted(done, params, found.scale, level), found.converged)


def _predicted(done: Studies, params: dict[str, Array], scale: Array, level: float) -> float:
    """Share of the held-out losses that lie in their interval."""
    studies = len(done.theta)
    losses = done.law.predict(params, done.held_out).reshape(studies, -1, 1)
    inside = 0
    for study, spread in enumerate(losses):
        low, high = of_new_runs(spread, done.noise.pool(study), scale.reshape(studies, -1)[study], level)
        inside += bool(low[0] <= np.exp(done.fresh[study]) <= high[0])
    return inside / studies


def by_profile(done: Studies, level: float) -> dict[str, float]:
    """Coverage of profile intervals: the truth is inside where the deviance there is below the cutoff."""
    inside = {}
    for name in done.law.parameters:
        own = own_coordinate(done.law, done.clean, "val_loss", name)
        problem = replace(own.problem, ln_y=done.problem.ln_y)
        theta = problem.coordinates(done.problem.natural(done.theta))
        truth = problem.coordinates(done.truth)[0, own.index]
        at = valley(problem, theta, done.objective, done.loss, own.index)
        rise = deviance(at, held(at, np.full((len(theta), 1), truth)))[:, 0]
        inside[name] = float(np.mean(rise <= quantile(level, at.dof) ** 2))
    return inside
