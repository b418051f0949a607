"""Many robust fits of one law at once: starts by variable projection, then a batched damped Newton method.

The model is ln L_i = logsumexp_k(Z_ik . theta), Z being the design tensor of laws.py, so with softmax weights w the
Jacobian is J_i = sum_k w_ik Z_ik and the second derivative sum_k w_ik Z_ik Z_ik' - J_i J_i': exact for every law, no
gradient by hand. A batch is a set of starts, or of bootstrap resamples given as multinomial weights on the same points.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from experiments.analysis.laws import Array

TOLERANCE = 1e-12  # relative decrease still to be had; looser ones stop visibly short of the optimum (Huber at 1e-3)
ROUNDING = 1e-24  # a squared residual no float64 fit can improve on, per point
SMOOTHER = (
    30.0  # a Huber loss with few kinks leads into the valley; started cold, the real one crawls from kink to kink
)
GRID = (0.05, 0.1, 0.16, 0.23, 0.31, 0.4, 0.5, 0.62, 0.76, 0.92, 1.1, 1.4, 1.8, 2.4)  # exponents tried by the starts
LAD_DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)  # least absolute deviations is the limit of Huber / delta


@dataclass(frozen=True)
class Problem:
    """One table to fit: design Z (points, terms, parameters), ln y, and the box that theta must stay in.

    `ln_y` is (points,), or (batch, points) where every member of a batch has losses of its own (a residual bootstrap,
    many simulated studies); the bounds are (parameters,) or (batch, parameters), equal ones holding a parameter fixed.
    """

    design: Array
    ln_y: Array
    lower: Array
    upper: Array
    n_coefficients: int

    def members(self, chosen: Any) -> "Problem":
        """The same problem for these members of the batch (a mask, indices or a slice)."""
        own = {name: value[chosen] for name in ("ln_y", "lower", "upper") if (value := getattr(self, name)).ndim == 2}
        return replace(self, **own) if own else self


@dataclass(frozen=True)
class Solution:
    """A batch of optima: theta (batch, parameters), objective (batch,), whether each one converged."""

    theta: Array
    objective: Array
    converged: Array
    iterations: int

    @property
    def best(self) -> int:
        """Index of the lowest objective."""
        return int(np.argmin(self.objective))


@dataclass(frozen=True)
class _Expansion:
    """Gradient, Hessian and its positive stand-in (IRLS Gauss-Newton) at a batch of points."""

    gradient: Array
    hessian: Array
    damping: Array


def residuals(problem: Problem, theta: Array) -> Array:
    """ln L(theta) - ln y, shape (batch, points)."""
    log_terms = np.einsum("nkp,bp->bnk", problem.design, theta, optimize=True)
    return np.logaddexp.reduce(log_terms, axis=2) - problem.ln_y


def huber(residual: Array, weights: Array, delta: float) -> Array:
    """Summed (not averaged) Huber loss per batch member; delta = inf is half the sum of squares."""
    size = np.abs(residual)
    inside = np.minimum(size, delta)
    return (weights * inside * (size - 0.5 * inside)).sum(axis=1)


def _expand(problem: Problem, theta: Array, weights: Array, delta: float) -> _Expansion:
    """Derivatives of the summed Huber objective at `theta` (batch, parameters)."""
    design = problem.design
    points, terms, size = design.shape
    log_terms = (theta @ design.reshape(-1, size).T).reshape(-1, points, terms)
    log_sum = np.logaddexp.reduce(log_terms, axis=2)
    softmax = np.exp(log_terms - log_sum[..., None])
    residual = log_sum - problem.ln_y
    jacobian = np.einsum("bnk,nkp->bnp", softmax, design, optimize=True)
    psi = np.clip(residual, -delta, delta) * weights
    inside = (np.abs(residual) <= delta) * weights
    irls = weights * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
    transposed = jacobian.transpose(0, 2, 1)
    outer = (design[..., :, None] * design[..., None, :]).reshape(points * terms, size * size)
    curvature = ((psi[..., None] * softmax).reshape(len(theta), -1) @ outer).reshape(-1, size, size)
    return _Expansion(
        gradient=np.einsum("bn,bnp->bp", psi, jacobian),
        hessian=transposed @ (jacobian * (inside - psi)[..., None]) + curvature,
        damping=transposed @ (jacobian * irls[..., None]),
    )


def _newton_step(problem: Problem, theta: Array, at: _Expansion, damping: Array) -> tuple[Array, Array]:
    """A damped Newton step inside the box, and its slope (negative downhill); both per batch member."""
    gradient, size = at.gradient, theta.shape[1]
    held = ((theta <= problem.lower) & (gradient > 0)) | ((theta >= problem.upper) & (gradient < 0))
    free = ~held
    gradient = np.where(free, gradient, 0.0)
    scale = np.trace(at.damping, axis1=1, axis2=2) / size
    matrix = at.hessian + damping[:, None, None] * at.damping
    matrix = matrix + ((1e-14 + 1e-8 * damping) * scale + 1e-300)[:, None, None] * np.eye(size)
    matrix = np.where(free[:, :, None] & free[:, None, :], matrix, np.eye(size))
    try:
        step = np.linalg.solve(matrix, -gradient[..., None])[..., 0]
    except np.linalg.LinAlgError:  # one singular member spoils the batch; the pseudo-inverse handles each
        step = (np.linalg.pinv(matrix) @ -gradient[..., None])[..., 0]
    step = np.clip(theta + np.clip(step, -5.0, 5.0), problem.lower, problem.upper) - theta
    return step, (step * at.gradient).sum(axis=1)


def minimize(problem: Problem, starts: Array, weights: Array, delta: float, max_iterations: int = 3000) -> Solution:
    """Minimise the summed Huber loss from each of `starts` (batch, parameters) with `weights` (batch or 1, points).

    Converged means: the step still to be taken promises less than 1e-12 of the objective, or no step lowers it at all.
    Converged members leave the batch, so the few that follow a kinked valley for a thousand steps cost little.
    """
    theta = np.clip(starts, problem.lower, problem.upper)
    weights = np.broadcast_to(weights, (len(theta), len(problem.design)))
    objective = huber(residuals(problem, theta), weights, delta)
    converged = np.zeros(len(theta), dtype=bool)
    active, damping = np.arange(len(theta)), np.full(len(theta), 1e-3)
    rounding = ROUNDING * weights.sum(axis=1)
    iterations = 0
    while len(active) and iterations < max_iterations:
        iterations += 1
        part = problem.members(active)
        at = _expand(part, theta[active], weights[active], delta)
        step, slope = _newton_step(part, theta[active], at, damping)
        downhill = np.isfinite(step).all(axis=1) & (slope < 0)
        trial = theta[active] + np.where(downhill[:, None], step, 0.0)
        value = huber(residuals(part, trial), weights[active], delta)
        better = downhill & (value < objective[active])
        small = TOLERANCE * objective[active] + rounding[active]
        promise = np.where(better, objective[active] - value, np.abs(slope))
        done = ((promise <= small) & (damping < 1.0)) | (~better & (damping > 1e9))
        theta[active[better]], objective[active[better]] = trial[better], value[better]
        damping = np.where(better, damping * 0.15, np.maximum(damping * 6.0, 1e-4))
        converged[active[done]] = True
        active, damping = active[~done], damping[~done]
    return Solution(theta, objective, converged, iterations)


def solve(
    problem: Problem,
    starts: Array,
    weights: Array,
    loss: str,
    delta: float,
    lower: Array | None = None,
    upper: Array | None = None,
) -> Solution:
    """Minimise `loss` (huber | lad | lsq); least absolute deviations is reached through ever smaller deltas.

    `lower`, `upper`: (parameters,) or (batch, parameters), the problem's own by default; equal ones hold a parameter.
    """
    sides = (problem.lower if lower is None else lower, problem.upper if upper is None else upper)
    problem = replace(problem, lower=sides[0], upper=sides[1])
    if loss == "huber":
        near = minimize(problem, starts, weights, SMOOTHER * delta, max_iterations=60)
        return minimize(problem, near.theta, weights, delta)
    if loss == "lsq":
        return minimize(problem, starts, weights, np.inf)
    solution = minimize(problem, starts, weights, 1e-2)
    for smaller in LAD_DELTAS:
        solution = minimize(problem, solution.theta, weights, smaller)
    absolute = (np.abs(residuals(problem, solution.theta)) * weights).sum(axis=1)
    return Solution(solution.theta, absolute, solution.converged, solution.iterations)


def starts(problem: Problem, keep: int = 8) -> Array:
    """Starting points by variable projection: a grid of exponents, the linear coefficients solved for each.

    The coefficients minimise the relative error (closed form); negative ones are lifted to a small share of the loss.
    The best point of each coarse cell of the grid is kept, so that agreement between starts means something.
    """
    n_exponents = len(problem.lower) - problem.n_coefficients
    exponents = np.array(list(product(GRID, repeat=n_exponents)))
    log_basis = np.einsum("nkp,gp->gnk", problem.design[..., problem.n_coefficients :], exponents, optimize=True)
    basis = np.exp(log_basis - problem.ln_y[:, None])
    transposed = basis.transpose(0, 2, 1)
    gram = transposed @ basis
    ridge = 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(gram.shape[1])
    linear = np.linalg.solve(gram + ridge, transposed.sum(axis=2)[..., None])[..., 0]
    share = 1.0 / np.maximum(basis.mean(axis=1), 1e-300)
    linear = np.maximum(linear, 0.02 * share)
    theta = np.concatenate([np.log(linear), exponents], axis=1)
    theta = np.clip(theta, problem.lower, problem.upper)
    error = np.abs(residuals(problem, theta)).sum(axis=1)
    cells = (np.searchsorted(GRID, exponents) // 4 * 10 ** np.arange(n_exponents)).sum(axis=1)
    order = np.argsort(error, kind="stable")
    _, first = np.unique(cells[order], return_index=True)
    return theta[order[np.sort(first)[:keep]]]
