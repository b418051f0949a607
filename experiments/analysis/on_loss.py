"""Fits of the loss itself instead of its logarithm: the protocol of fits made with curve_fit, and of some packages.

On ln L every run counts by its relative error, which is right where the noise is relative. Some published figures were
made on L, where runs of high loss count more, and with few points that shows: held-out errors of .71 % there are
1.05 % on ln L (Gadre et al. 2024, arXiv 2403.08540). To reproduce such a figure, not to make new ones.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from experiments.analysis import arguments
from experiments.analysis.derivatives import Expansion, Model
from experiments.analysis.fit import AGREE, fit
from experiments.analysis.fitted import Fit
from experiments.analysis.laws import Array, Law
from experiments.analysis.problem import Problem, make_problem
from experiments.analysis.resample import Objective, drawn, noise_levels, refit
from experiments.analysis.solver import solve
from nanogpt.config import UserError

HIGHEST = 100.0  # ln of a loss: a step that leads beyond is refused all the same, and its square is still a number


@dataclass(frozen=True, eq=False)
class LossExpansion:
    """What an expansion of ln L says of L: dL = L d(ln L), and ddL = L (dd(ln L) + d(ln L) d(ln L)')."""

    of_log: Expansion
    log_loss: Array

    @property
    def jacobian(self) -> Array:
        return self.of_log.jacobian * self.log_loss[..., None]

    def gradient(self, first: Array) -> Array:
        return self.of_log.gradient(first * self.log_loss)

    def hessian(self, first: Array, second: Array | None = None) -> Array:
        squares = first * self.log_loss**2
        if second is None:
            return self.of_log.hessian(squares)
        return self.of_log.hessian(squares + second * self.log_loss, second * self.log_loss)


class LossModel:
    """A model of ln L that answers for L: everywhere that `Model` says ln L, it gives L."""

    def __init__(self, of_log: Model) -> None:
        self.of_log, self.block, self.working = of_log, of_log.block, of_log.working

    def log_loss(self, theta: Array) -> Array:
        return np.exp(np.minimum(self.of_log.log_loss(theta), HIGHEST))

    def expand(self, theta: Array) -> LossExpansion:
        at = self.of_log.expand(theta)
        return LossExpansion(at, np.exp(np.minimum(at.log_loss, HIGHEST)))


def on_loss(problem: Problem) -> Problem:
    """The problem whose residuals are those of L."""
    return replace(problem, model=LossModel(problem.model), ln_y=np.exp(problem.ln_y))


def fit_on_loss(law: Law | str, df: pd.DataFrame, **options: Any) -> Fit:
    """`fit` with misses of L in place of ln L: least squares unless `loss` and `delta` (in nats) say otherwise;
    `bootstrap` resamples of pairs (default 0).

    Options as for `fit`, but for `intervals` and `resample`, which are settled here. Raises UserError as `fit`.
    """
    if "intervals" in options or options.get("resample") == "residual":
        name = "intervals" if "intervals" in options else "resample"
        raise UserError(f"fit_on_loss: {name} cannot be chosen: the noise of L is not known, so pairs are drawn")
    draws = arguments.resamples(options.get("bootstrap", 0), "fit_on_loss")
    options = {"loss": "lsq"} | {name: each for name, each in options.items() if name != "resample"}
    start = fit(law, df, **{**options, "bootstrap": 0})
    plain = make_problem(start.law, start.points, start.y)
    problem, ones = on_loss(plain), np.ones((1, plain.points))
    point = solve(problem, plain.starts(), ones, start.loss, start.delta)
    theta, objective = point.theta[[point.best]], float(point.objective[point.best])
    predicted = np.exp(plain.model.log_loss(theta)[0])
    done = replace(
        start, on="L", resample="pairs", objective=objective, converged=bool(point.converged[point.best]),
        params={name: float(values[0]) for name, values in plain.natural(theta).items()},
        points=start.points.assign(predicted=predicted, residual=plain.ln_y - np.log(predicted)),
        reason="converged" if point.converged[point.best] else f"stopped after {point.iterations} iterations",
        starts_agreeing=int(np.sum(point.objective <= objective * (1 + 1e-6) + AGREE[start.loss] * plain.points)),
    )  # fmt: skip
    if not draws:
        return done
    weights = drawn(start.points, theta.shape[1], draws, options.get("cluster"), start.seed)
    scales = noise_levels(draws, max(1, plain.points - theta.shape[1]), np.random.default_rng([start.seed, 1]))
    near, of = np.tile(theta, (draws, 1)), Objective(start.loss, start.delta)
    found = refit(problem, near, point.theta, weights, of, scales)
    return replace(done, draws=pd.DataFrame(plain.natural(found.theta)), scales=found.scale,
                   draws_converged=found.converged)  # fmt: skip
