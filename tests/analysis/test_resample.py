"""Bootstraps and the noise behind them: leverage, level, tails, what robust losses run through, clusters, refusals."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.analysis.designs import simulate
from experiments.analysis.fit import Loss, fit
from experiments.analysis.laws import make_law
from experiments.analysis.noise import dispersion, leverage, noise_of
from experiments.analysis.problem import make_problem
from experiments.analysis.resample import Objective, drawn, refit
from experiments.analysis.solver import huber, solve
from nanogpt.config import UserError
from tests.analysis.tables import planted_runs
from tests.analysis.test_profile import line


def design(tables: int, points: int) -> np.ndarray:
    """Jacobians of a straight line with unevenly spaced inputs, the same in every table."""
    x = np.geomspace(1.0, 30.0, points)
    return np.broadcast_to(np.stack([np.ones(points), x], axis=1), (tables, points, 2))


def test_leverage_is_the_diagonal_of_the_hat_matrix() -> None:
    jacobian = design(1, 9)
    j = jacobian[0]
    np.testing.assert_allclose(leverage(jacobian)[0], np.diag(j @ np.linalg.inv(j.T @ j) @ j.T), rtol=1e-10)


def test_errors_of_a_least_squares_fit_have_the_size_of_the_noise() -> None:
    """Its residuals are smaller, by 2 in 9 here; the errors, and what is drawn from them, are not."""
    rng = np.random.default_rng(0)
    jacobian, y = design(4000, 9), rng.normal(0.0, 0.01, (4000, 9))
    hat = jacobian[0] @ np.linalg.pinv(jacobian[0])
    residual = y - y @ hat
    noise = noise_of(residual, jacobian, np.inf)
    assert (residual**2).mean() == pytest.approx(1e-4 * 7 / 9, rel=0.03)
    assert (noise.errors**2).mean() == pytest.approx(1e-4, rel=0.03)
    assert (noise.draw(20, rng) ** 2).mean() == pytest.approx(1e-4, rel=0.05)
    assert dispersion(noise, residual, np.inf).mean() == pytest.approx(1e-4, rel=0.03)
    assert (noise.skip == 0).all()


def test_what_a_robust_fit_runs_through_is_not_noise() -> None:
    """Least absolute deviations leave one zero per parameter; the pool leaves these out."""
    result = fit("chinchilla", planted_runs(noise=0.005), loss="lad", bootstrap=0)
    assert (result.residuals.abs() < 1e-7).sum() == 5
    assert len(result.noise) == 30
    assert np.abs(result.noise).min() > 1e-6


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.02, 0.1])
def test_dispersion_of_normal_noise_is_that_of_the_theory(delta: float) -> None:
    """E psi^2 / E psi' for normal errors of sd 0.01, by numerical integration; 1 / (2 f(0)) for absolute values."""
    errors = np.random.default_rng(0).normal(0.0, 0.01, (30, 600))
    noise = noise_of(errors, design(30, 600), delta)
    if delta == 0.0:
        theory = 0.01 * np.sqrt(2 * np.pi) / 2
    else:
        grid = np.linspace(-0.08, 0.08, 20001)
        density = stats.norm.pdf(grid, scale=0.01) * (grid[1] - grid[0])
        theory = (np.minimum(np.abs(grid), delta) ** 2 * density).sum() / density[np.abs(grid) < delta].sum()
    assert dispersion(noise, errors, delta).mean() == pytest.approx(theory, rel=0.08)


def test_residual_bootstrap_of_a_straight_line_has_students_tails() -> None:
    """Six points, two parameters: with 4 degrees of freedom a 99 % interval is 1.8 times a normal one."""
    table = line(points=6)
    result = fit("power_law", table, loss="lsq", bootstrap=4000)
    ols = stats.linregress(np.log(table["flops"]), np.log(table["val_loss"]))
    for level in (0.5, 0.9, 0.99):
        lower, upper = result.conf_int(level).loc["alpha"]
        width = 2 * stats.t.ppf(0.5 + level / 2, 4) * ols.stderr
        assert upper - lower == pytest.approx(width, rel=0.15)


def test_kinds_differ_and_are_named() -> None:
    runs = planted_runs()
    residual, pairs = (fit("chinchilla", runs, bootstrap=30, resample=kind) for kind in ("residual", "pairs"))
    assert residual.params == pairs.params
    assert not residual.draws.equals(pairs.draws)
    assert "30 residual-bootstrap resamples" in residual.summary()
    assert "30 pairs-bootstrap resamples" in pairs.summary()
    assert (residual.to_dict()["resample"], pairs.to_dict()["resample"]) == ("residual", "pairs")
    assert fit("chinchilla", runs, bootstrap=5, cluster="id").resample == "pairs"


def test_refusals() -> None:
    runs = planted_runs()
    with pytest.raises(UserError, match="did you mean 'pairs'"):
        fit("chinchilla", runs, resample="pair")
    with pytest.raises(UserError, match="cannot go with cluster id; pairs can"):
        fit("chinchilla", runs, resample="residual", cluster="id")


def test_points_of_one_run_are_not_independent() -> None:
    """Runs that share an error of their own: without clusters the interval is too narrow by about the square root of
    the points per run."""
    rng = np.random.default_rng(0)
    runs = planted_runs(noise=0.0)
    curve = pd.concat([runs.assign(run=runs["model.n_embd"].astype(str))] * 4, ignore_index=True)
    errors = dict(zip(curve["run"].unique(), rng.normal(0, 0.01, curve["run"].nunique()), strict=True))
    curve["val_loss"] *= np.exp(curve["run"].map(errors).astype(float) + rng.normal(0, 0.001, len(curve)))
    plain, clustered = fit("chinchilla", curve), fit("chinchilla", curve, cluster="run")
    widths = [(at.conf_int().loc["alpha", "upper"] - at.conf_int().loc["alpha", "lower"]) for at in (plain, clustered)]
    assert widths[1] > 2 * widths[0]


@pytest.mark.parametrize("loss", ["huber", "lsq"])
def test_every_resample_reaches_the_lowest_objective_that_any_start_finds(loss: Loss) -> None:
    """From the table's own optimum alone as good as from all its starts, in a quarter of the steps."""
    runs = planted_runs(noise=0.01)
    problem = make_problem(make_law("chinchilla"), runs, "val_loss")
    weights, of = drawn(runs, 5, 100, None, 0), Objective(loss, 1e-3)
    first = problem.starts()
    point = solve(problem, first, np.ones(len(runs)), loss, of.delta)
    near = np.tile(point.theta[point.best], (100, 1))
    found = refit(problem, near, point.theta, weights, of, np.ones(100))
    assert found.converged == 1.0
    cold = solve(problem, np.tile(first, (100, 1)), np.repeat(weights, len(first), axis=0), loss, of.delta)
    lowest = cold.objective.reshape(100, -1).min(axis=1)
    assert (huber(problem.residuals(found.theta), weights, of.threshold) <= lowest * (1 + 1e-9)).all()


def test_another_optimum_of_the_table_is_tried_where_it_may_be_better() -> None:
    """The broken law has several; from the poorest one alone, resamples stay there."""
    law = make_law("bnsl2")
    problem = make_problem(law, simulate(law, law.identifying_design(), seed=1), "val_loss")
    weights, of = np.ones((2, problem.points)), Objective("lsq", 1e-3)
    point = solve(problem, problem.starts(), weights[0], "lsq", of.delta)
    poor = np.tile(point.theta[point.objective.argmax()], (2, 1))
    objectives = []
    for others in (point.theta[:0], point.theta):
        found = refit(problem, poor, others, weights, of, np.ones(2))
        objectives.append(huber(problem.residuals(found.theta), weights, np.inf) / point.objective.min())
    assert (objectives[0] > 1.01).all()
    assert objectives[1] == pytest.approx(1.0, rel=1e-6)
