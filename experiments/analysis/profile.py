"""Profile likelihood: how much worse the best fit gets when one parameter is held at other values.

It needs no resamples, sees bent and open-ended valleys that a standard error cannot, and shows where the data stop
saying anything: a profile that never rises to its cutoff on one side has no end there. The rise of the objective is
measured in units of the noise and judged by F(1, n - parameters), also for Huber and absolute-value losses (noise.py).
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.analysis.laws import Array, Law
from experiments.analysis.noise import dispersion, noise_of
from experiments.analysis.problem import Problem, make_problem
from experiments.analysis.resample import Objective
from experiments.analysis.solver import solve

if TYPE_CHECKING:
    from experiments.analysis.fitted import Fit

VALUES = 41  # per profile, both sides together
WIDENINGS = 6  # times a side reaches further, each 2.5 times as far, before its end counts as open


@dataclass(frozen=True, eq=False)
class Profile:
    """The profile of one parameter. `table`: a row per value held, columns value, objective (of the best fit there) and
    deviance (its rise over the noise); values with a deviance up to `cutoff` are in the interval.

    `lower` and `upper` are the interval's ends at `level`; an end the data do not set is 0 or infinite and `open_below`
    or `open_above` says so. `logarithmic`: the values are spaced evenly in their logarithm.
    """

    name: str
    unit: str
    estimate: float
    level: float
    cutoff: float
    lower: float
    upper: float
    open_below: bool
    open_above: bool
    logarithmic: bool
    table: pd.DataFrame

    @property
    def closed(self) -> bool:
        """Whether the data set both ends."""
        return not (self.open_below or self.open_above)

    @property
    def words(self) -> str:
        """The interval as a sentence."""
        if self.closed:
            return f"{self.name} lies between {self.lower:.4g} and {self.upper:.4g} ({self.level:.0%} profile)"
        if self.open_below and self.open_above:
            return f"{self.name} is not identified: the data exclude no value of it at {self.level:.0%}"
        side, end = ("below", self.upper) if self.open_below else ("above", self.lower)
        limit = f"it lies {'under' if self.open_below else 'over'} {end:.4g}"
        return f"{self.name} is not identified from {side}: {limit}, and nothing else is excluded at {self.level:.0%}"


@dataclass(frozen=True, eq=False)
class Valley:
    """Fits of one design whose coordinate `index` is to be held: `theta` (tables, parameters) and `objective` (tables,)
    at the optima, `unit` (tables,) by which half a squared standard error raises the objective."""

    problem: Problem
    loss: Objective
    index: int
    theta: Array
    objective: Array
    unit: Array
    dof: int

    @property
    def ridge(self) -> Array:
        """How the other coordinates move with the held one, (tables, parameters), and 1 for itself."""
        covariance = self._covariance()
        return np.asarray(covariance[:, :, self.index] / covariance[:, self.index, self.index, None])

    @property
    def stderr(self) -> Array:
        """Standard error of the held coordinate from the curvature, (tables,)."""
        return np.sqrt(self.unit * self._covariance()[:, self.index, self.index])

    def _covariance(self) -> Array:
        jacobian = self.problem.model.expand(self.theta).jacobian
        information = jacobian.transpose(0, 2, 1) @ jacobian
        scale = np.trace(information, axis1=1, axis2=2)[:, None, None] / information.shape[1]
        return np.linalg.inv(information + 1e-13 * scale * np.eye(information.shape[1]))


def valley(problem: Problem, theta: Array, objective: Array, loss: Objective, index: int) -> Valley:
    """The valley around fits `theta` (tables, parameters) along one coordinate."""
    jacobian = problem.model.expand(theta).jacobian
    residual = -problem.residuals(theta)
    noise = noise_of(residual, jacobian, loss.threshold)
    return Valley(problem, loss, index, theta, objective, dispersion(noise, residual, loss.threshold), noise.dof)


def held(at: Valley, values: Array) -> Array:
    """The objective with the coordinate held at each of `values` (tables, values) and all others refitted.

    Every value is solved from the ridge of the optimum, then again from what its neighbours found: a second valley
    that one value fell into is seen by the next.
    """
    ridge = at.theta[:, None] + at.ridge[:, None] * (values - at.theta[:, at.index, None])[..., None]
    theta, objective = _hold(at, values, ridge)
    for shift in (1, -1) if values.shape[1] > 1 else ():
        neighbour = np.roll(theta, shift, axis=1)
        again, found = _hold(at, values, neighbour)
        better = found < objective
        objective, theta = np.where(better, found, objective), np.where(better[..., None], again, theta)
    return objective


def _hold(at: Valley, values: Array, launch: Array) -> tuple[Array, Array]:
    """Optima (tables, values, parameters) and objectives from `launch`, the coordinate held."""
    tables, count, size = launch.shape
    start = launch.reshape(-1, size).copy()
    start[:, at.index] = values.ravel()
    lower, upper = (np.tile(bound, (len(start), 1)) for bound in (at.problem.lower, at.problem.upper))
    lower[:, at.index] = upper[:, at.index] = values.ravel()
    members = at.problem.members(np.repeat(np.arange(tables), count))
    weights = np.ones((len(start), at.problem.ln_y.shape[-1]))
    found = solve(members, start, weights, at.loss.loss, at.loss.delta, lower, upper)
    return found.theta.reshape(tables, count, size), found.objective.reshape(tables, count)


def deviance(at: Valley, objective: Array) -> Array:
    """The rise of the objective (tables, values) in squared standard errors: F(1, dof) at the true value."""
    rise = np.maximum(objective - at.objective[:, None], 0.0)
    return np.asarray(2.0 * rise / np.maximum(at.unit[:, None], 1e-300))


def quantile(level: float, dof: int) -> float:
    """Student's two-sided quantile: the root of the cutoff."""
    from scipy.stats import t

    return float(t.ppf(0.5 + 0.5 * level, dof))


def profile(fit: "Fit", name: str, level: float = 0.95) -> Profile:
    """The profile of parameter `name` of a fit, wide enough to show where its interval at `level` ends."""
    own = own_coordinate(fit.law, fit.points, fit.y, name)
    problem, index, logarithmic = own.problem, own.index, own.logarithmic
    loss = Objective(fit.loss, fit.delta)
    at = valley(problem, problem.coordinates(fit.params), np.array([fit.objective]), loss, index)
    root = quantile(level, at.dof)
    low, high = (_side(at, root, sign) for sign in (-1.0, 1.0))
    values = np.concatenate([low.values[::-1], at.theta[:, index], high.values])
    objective = np.concatenate([low.objective[::-1], at.objective, high.objective])
    with np.errstate(over="ignore"):  # a coefficient that nothing bounds from above
        own_values = np.exp(values) if logarithmic else values
    table = pd.DataFrame({
        "value": own_values, "objective": objective,
        "deviance": deviance(at, objective[None])[0],
    })  # fmt: skip
    ends = [np.exp(side.end) if logarithmic else side.end for side in (low, high)]
    nothing = 0.0 if logarithmic or problem.lower[index] >= 0.0 else -np.inf
    return Profile(
        name=name, unit=fit.law.unit(name), estimate=float(fit.params[name]), level=level, cutoff=root**2,
        lower=nothing if low.open else float(ends[0]), upper=np.inf if high.open else float(ends[1]),
        open_below=low.open, open_above=high.open, logarithmic=logarithmic, table=table,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Own:
    """A problem with a coordinate, at `index`, that belongs to one parameter alone; whether it is the logarithm."""

    problem: Problem
    index: int
    logarithmic: bool


def own_coordinate(law: Law, used: pd.DataFrame, y: str, name: str) -> Own:
    """Where a parameter can be held by holding one coordinate.

    Centred coordinates are better conditioned; they serve where the centres do not mix the parameter with others.
    Uncentred, a coefficient stands for its term at an input of 1, far outside the box of the centred ones: no box then.
    """
    index = law.parameters.index(name)
    logarithmic, mixed = law.quantities[index].log, np.array([bool(quantity.scales) for quantity in law.quantities])
    if not mixed[index]:
        return Own(make_problem(law, used, y), index, logarithmic)
    plain = make_problem(law, used, y, centre=False)
    lower, upper = np.where(mixed, -np.inf, plain.lower), np.where(mixed, np.inf, plain.upper)
    return Own(replace(plain, lower=lower, upper=upper), index, logarithmic)


@dataclass(frozen=True, eq=False)
class _Side:
    """One half of a profile, outwards: coordinates, objectives, where it crosses the cutoff."""

    values: Array
    objective: Array
    end: float
    open: bool


def _side(at: Valley, root: float, sign: float) -> _Side:
    """Walk outwards until the deviance passes the cutoff or the box ends, then close in on the crossing."""
    centre = float(at.theta[0, at.index])
    bound = float((at.problem.lower if sign < 0 else at.problem.upper)[at.index])
    reach = 1.5 * root * max(float(at.stderr[0]), 1e-9)
    for widening in range(WIDENINGS):
        stop = centre + sign * reach
        stop = max(stop, bound) if sign < 0 else min(stop, bound)
        values = centre + (stop - centre) * np.arange(1, VALUES // 2 + 1) / (VALUES // 2)
        objective = held(at, values[None])[0]
        roots = np.sqrt(deviance(at, objective[None])[0])
        if roots[-1] > root or stop == bound or widening == WIDENINGS - 1:
            break
        reach *= 2.5
    if not roots[-1] > root:
        return _Side(values, objective, stop, True)
    return _Side(values, objective, _crossing(at, root, np.append(centre, values), np.append(0.0, roots)), False)


def _crossing(at: Valley, root: float, values: Array, roots: Array) -> float:
    """The outermost value whose deviance is the cutoff: a straight line through the root's bracket, refined twice."""
    last = int(np.flatnonzero(roots <= root)[-1])
    inside, outside = (values[last], roots[last]), (values[last + 1], roots[last + 1])
    guess = float(values[last])
    for _ in range(3):
        share = (root - inside[1]) / (outside[1] - inside[1])
        guess = float(inside[0] + share * (outside[0] - inside[0]))
        here = float(np.sqrt(deviance(at, held(at, np.array([[guess]])))[0, 0]))
        inside, outside = ((guess, here), outside) if here <= root else (inside, (guess, here))
    return guess
