"""Times a Chinchilla fit and its bootstrap beside scipy's on the same 240 points: `python -m benchmarks.fit_speed`.

The peers are what published fits use. The point fit: L-BFGS-B with numerical gradients from the 4,500 starts of
Hoffmann et al. 2022 (arXiv 2203.15556, D.2), timed on a random sample of them and multiplied up. The bootstrap: BFGS
with an analytic gradient, from the point fit, on the very resamples that ours solves; once in the published
coordinates, once in our centred ones. All of them minimise the same objective: Huber at 1e-3 on ln L, summed.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from experiments.analysis.fit import fit
from experiments.analysis.laws import Chinchilla
from experiments.analysis.problem import Problem, make_problem
from experiments.analysis.resample import Objective, refit
from experiments.analysis.solver import huber, solve

POINTS, NOISE, DELTA = 240, 0.01, 1e-3
STEPS = np.arange(0.0, 2.5, 0.5)
HOFFMANN = list(product(np.arange(-1.0, 1.5, 0.5), np.arange(0.0, 30.0, 5.0), np.arange(0.0, 30.0, 5.0), STEPS, STEPS))
REACHED = 1e-6  # relative distance from the lowest objective at which an optimum counts as found


@dataclass
class Timing:
    """Wall and CPU seconds of one piece of work."""

    wall: float = 0.0
    cpu: float = 0.0

    def __str__(self) -> str:
        return f"{self.wall:9.3f} s ({self.cpu:.3f} CPU)"


@contextmanager
def timed() -> Iterator[Timing]:
    timing, wall, cpu = Timing(), time.perf_counter(), time.process_time()
    yield timing
    timing.wall, timing.cpu = time.perf_counter() - wall, time.process_time() - cpu


def planted(law: Chinchilla, seed: int) -> pd.DataFrame:
    """Sizes and tokens spread evenly in their logarithms, with Hoffmann's surface and noise on ln L."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log([5e7, 1e9]), np.log([1.6e10, 5e11]), (POINTS, 2)))
    table = pd.DataFrame(sizes, columns=[law.n, law.d])
    table["val_loss"] = law.predict(law.identifying_design().params, table) * np.exp(rng.normal(0.0, NOISE, POINTS))
    return table


def objective_of(problem: Problem, weights: np.ndarray) -> Callable[[np.ndarray], float]:
    """Value alone, as in the published fits."""
    log_n, log_d = (problem.x[name] for name in problem.law.columns)

    def value(theta: np.ndarray) -> float:
        e, a, b, alpha, beta = theta
        residual = np.logaddexp(np.logaddexp(e, a - alpha * log_n), b - beta * log_d) - problem.ln_y
        size = np.abs(residual)
        inside = np.minimum(size, DELTA)
        return float((weights * inside * (size - 0.5 * inside)).sum())

    return value


def objective_and_gradient(problem: Problem, weights: np.ndarray) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Value and gradient written out by hand."""
    log_n, log_d = (problem.x[name] for name in problem.law.columns)

    def both(theta: np.ndarray) -> tuple[float, np.ndarray]:
        e, a, b, alpha, beta = theta
        terms = np.exp(np.stack([np.full_like(log_n, e), a - alpha * log_n, b - beta * log_d]))
        total = terms.sum(axis=0)
        residual = np.log(total) - problem.ln_y
        size = np.abs(residual)
        inside = np.minimum(size, DELTA)
        psi = weights * np.sign(residual) * inside
        floor, by_size, by_data = psi * terms / total
        gradient = [floor.sum(), by_size.sum(), by_data.sum(), -(by_size * log_n).sum(), -(by_data * log_d).sum()]
        return float((weights * inside * (size - 0.5 * inside)).sum()), np.array(gradient)

    return both


def compare_point_fits(law: Chinchilla, table: pd.DataFrame, sample: int, seed: int) -> None:
    problem, ones = make_problem(law, table, "val_loss", centre=False), np.ones(POINTS)
    fit(law, table, bootstrap=0)  # the first call pays for what is loaded late
    with timed() as ours:
        result = fit(law, table, bootstrap=0)
    starts = np.random.default_rng(seed).choice(HOFFMANN, sample, replace=False)
    with timed() as theirs:
        found = [minimize(objective_of(problem, ones), start, method="L-BFGS-B").fun for start in starts]
    reached = np.mean(np.array(found) <= result.objective * (1 + REACHED))
    times = len(HOFFMANN) / sample
    print(f"point fit, {POINTS} points")
    print(f"  ours                        {ours}  objective {result.objective:.12g}, "
          f"{result.starts_agreeing} of {result.starts} starts agree")  # fmt: skip
    print(
        f"  L-BFGS-B, {sample} starts        {theirs}  objective {min(found):.12g}, {reached:.0%} of starts reach ours"
    )
    print(f"  extrapolated to {len(HOFFMANN)} starts {theirs.wall * times:9.1f} s ({theirs.cpu * times:.1f} CPU)")
    print(f"  ratio {theirs.wall * times / ours.wall:.0f} (CPU {theirs.cpu * times / ours.cpu:.0f})")


def compare_bootstraps(law: Chinchilla, table: pd.DataFrame, resamples: int, seed: int) -> None:
    problem = make_problem(law, table, "val_loss")
    weights = np.random.default_rng(seed).multinomial(POINTS, np.full(POINTS, 1 / POINTS), resamples).astype(float)
    point = solve(problem, problem.starts(), np.ones(POINTS), "huber", DELTA)
    best = point.theta[point.best]
    near, ones = np.tile(best, (resamples, 1)), np.ones(resamples)
    with timed() as ours:
        draws = refit(problem, near, point.theta, weights, Objective("huber", DELTA), ones)
    objective = huber(problem.residuals(draws.theta), weights, DELTA)
    print(f"bootstrap, {resamples} resamples of {POINTS} points")
    print(f"  ours                        {ours}  {draws.converged:.2%} converged")
    for name, centre in (("published", False), ("centred", True)):
        peer = make_problem(law, table, "val_loss", centre=centre)
        origin = peer.coordinates(problem.natural(best[None]))[0]
        with timed() as theirs:
            results = [minimize(objective_and_gradient(peer, w), origin, jac=True, method="BFGS") for w in weights]
        found = np.array([result.fun for result in results])
        print(f"  BFGS, {name:<9} inputs     {theirs}  {np.mean([r.success for r in results]):.2%} converged, "
              f"{np.mean(found > objective * (1 + REACHED)):.1%} stop above ours by {REACHED:g} or more, "
              f"{np.mean(found < objective * (1 - 1e-9)):.1%} below")  # fmt: skip
        print(f"  ratio {theirs.wall / ours.wall:.1f} (CPU {theirs.cpu / ours.cpu:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=90, help="how many of the 4,500 starts are timed")
    parser.add_argument("--resamples", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    law = Chinchilla()
    table = planted(law, arguments.seed)
    compare_point_fits(law, table, arguments.starts, arguments.seed)
    compare_bootstraps(law, table, arguments.resamples, arguments.seed)


if __name__ == "__main__":
    main()
