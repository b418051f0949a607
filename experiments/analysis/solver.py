"""Many robust fits of one law at once: a batched damped Newton method in float64.

A batch is a set of starts, or of bootstrap resamples given as multinomial weights on the same points or as losses of
their own. Bounds belong to the batch or to each member, and a parameter whose bounds meet is held there (profile
likelihood).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.analysis.laws import Array
from experiments.analysis.problem import Problem

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

TOLERANCE = 1e-12  # relative decrease still to be had; looser ones stop visibly short of the optimum (Huber at 1e-3)
ROUNDING = 1e-24  # a squared residual no float64 fit can improve on, per point
MET = 3  # decimals of the coordinates to which two descents into the valley of one problem are the same
LAD_DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)  # least absolute deviations is the limit of Huber / delta


@dataclass(frozen=True)
class Approach:
    """The way into the valley: a Huber loss `smoother` times wider, with fewer kinks, minimised to `tolerance`. Started
    cold, the real loss crawls along its kinks; started beside its optimum, it needs little help."""

    smoother: float
    tolerance: float


COLD, WARM = Approach(30.0, 1e-8), Approach(5.0, 1e-2)


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


class Objective(NamedTuple):
    """The objective at a batch of points: value, gradient, Hessian and its positive stand-in (IRLS Gauss-Newton)."""

    value: Array
    gradient: Array
    hessian: Array
    damping: Array

    def take(self, chosen: Mask) -> "Objective":
        """The members where `chosen`."""
        return Objective(*(part[chosen] for part in self))

    def replace(self, where: Mask, by: "Objective") -> None:
        """Take over `by` at the members `where`."""
        for part, other in zip(self, by, strict=True):
            part[where] = other[where]


def huber(residual: Array, weights: Array, delta: float) -> Array:
    """Summed (not averaged) Huber loss per batch member; delta = inf is half the sum of squares."""
    size = np.abs(residual)
    inside = np.minimum(size, delta)
    return (weights * inside * (size - 0.5 * inside)).sum(axis=1)


def expand(problem: Problem, theta: Array, weights: Array, delta: float, members: Indices) -> Objective:
    """The summed Huber objective and its derivatives at `theta` (members, parameters), a block of members at a time.

    `weights` are of the whole batch, of which `members` are looked at.
    """
    step = problem.model.block
    blocks = [slice(begin, begin + step) for begin in range(0, len(theta), step)]
    parts = [_expand_block(problem.members(members[b]), theta[b], weights[members[b]], delta) for b in blocks]
    return parts[0] if len(parts) == 1 else Objective(*map(np.concatenate, zip(*parts, strict=True)))


def _expand_block(problem: Problem, theta: Array, weights: Array, delta: float) -> Objective:
    """`expand` for members whose arrays fit in the cache together."""
    at = problem.model.expand(theta)
    residual = at.log_loss - problem.ln_y
    size = np.abs(residual)
    clipped = np.clip(residual, -delta, delta)
    psi = clipped * weights
    return Objective(
        value=np.einsum("bn,bn->b", psi, residual - 0.5 * clipped),
        gradient=at.gradient(psi),
        hessian=at.hessian((size <= delta) * weights, psi),
        damping=at.hessian(weights / np.maximum(size / delta, 1.0)),  # weights * psi(r) / r, at 0 and at infinity too
    )


def _newton_step(theta: Array, box: tuple[Array, Array], at: Objective, damping: Array) -> tuple[Array, Array]:
    """A damped Newton step inside the box, and its slope (negative downhill); both per batch member."""
    (lower, upper), gradient, size = box, at.gradient, theta.shape[1]
    held = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0)) | (lower == upper)
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
    step = np.clip(theta + np.clip(step, -5.0, 5.0), lower, upper) - theta
    return step, (step * at.gradient).sum(axis=1)


def minimize(
    problem: Problem,
    starts: Array,
    weights: Array,
    delta: float,
    box: tuple[Array, Array] | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = 3000,
) -> Solution:
    """Minimise the summed Huber loss from each of `starts` (batch, parameters) with `weights` (batch or 1, points).

    Converged means: the step still to be taken promises less than `tolerance` of the objective, or no step lowers it.
    Converged members leave the batch, so the few that follow a kinked valley for a thousand steps cost little.
    """
    lower, upper = (np.broadcast_to(side, starts.shape) for side in box or (problem.lower, problem.upper))
    theta = np.clip(starts, lower, upper)
    weights = np.broadcast_to(weights, (len(theta), problem.points))
    active, damping = np.arange(len(theta)), np.full(len(theta), 1e-3)
    at = expand(problem, theta, weights, delta, active)
    objective, converged = at.value.copy(), np.zeros(len(theta), dtype=bool)
    least = ROUNDING * weights.sum(axis=1)
    iterations = 0
    while len(active) and iterations < max_iterations:
        iterations += 1
        step, slope = _newton_step(theta[active], (lower[active], upper[active]), at, damping)
        small = tolerance * at.value + least[active]
        settled = (np.abs(slope) <= small) & (damping < 1.0)
        if settled.any():
            converged[active[settled]] = True
            active, damping, small, step, slope = (each[~settled] for each in (active, damping, small, step, slope))
            at = at.take(~settled)
        if not len(active):
            break
        downhill = np.isfinite(step).all(axis=1) & (slope < 0)
        trial = theta[active] + np.where(downhill[:, None], step, 0.0)
        there = expand(problem, trial, weights, delta, active)
        better = downhill & (there.value < at.value)
        done = (better & (at.value - there.value <= small) & (damping < 1.0)) | (~better & (damping > 1e9))
        theta[active[better]], objective[active[better]] = trial[better], there.value[better]
        damping = np.where(better, damping * 0.15, np.maximum(damping * 6.0, 1e-4))
        at.replace(better, there)
        if done.any():
            converged[active[done]] = True
            active, damping, at = active[~done], damping[~done], at.take(~done)
    return Solution(theta, objective, converged, iterations)


def solve(
    problem: Problem,
    starts: Array,
    weights: Array,
    loss: str,
    delta: float,
    lower: Array | None = None,
    upper: Array | None = None,
    approach: Approach = COLD,
) -> Solution:
    """Minimise `loss` (huber | lad | lsq) from each of `starts` (batch, parameters).

    `weights`: (points,), (1, points) or (batch, points). `lower`, `upper`: (parameters,) or (batch, parameters), the
    problem's own by default; where the two are equal the parameter is held there. `approach`: WARM for starts that are
    optima of nearly the same problem.
    """
    sides = (problem.lower if lower is None else lower, problem.upper if upper is None else upper)
    box = (np.broadcast_to(sides[0], starts.shape), np.broadcast_to(sides[1], starts.shape))
    weights = np.broadcast_to(weights, (len(starts), problem.points))
    with problem.model.working():
        return _solve(problem, starts, weights, loss, delta, box, approach)


def _solve(
    problem: Problem,
    starts: Array,
    weights: Array,
    loss: str,
    delta: float,
    box: tuple[Array, Array],
    approach: Approach,
) -> Solution:
    if loss == "huber":
        near = minimize(problem, starts, weights, approach.smoother * delta, box, approach.tolerance, max_iterations=60)
        if approach is WARM:
            return minimize(problem, near.theta, weights, delta, box)
        return _sharpen(problem, near, weights, delta, box)
    if loss == "lsq":
        return minimize(problem, starts, weights, np.inf, box)
    solution = minimize(problem, starts, weights, 1e-2, box)
    for smaller in LAD_DELTAS:  # least absolute deviations is reached through ever smaller deltas
        solution = minimize(problem, solution.theta, weights, smaller, box)
    absolute = (np.abs(problem.residuals(solution.theta)) * weights).sum(axis=1)
    return Solution(solution.theta, absolute, solution.converged, solution.iterations)


def _sharpen(problem: Problem, near: Solution, weights: Array, delta: float, box: tuple[Array, Array]) -> Solution:
    """From the optima of a smoother loss to those of the real one; starts of one problem that met go on as one."""
    mark = np.sqrt(np.arange(2.0, problem.points + 2.0))  # tells sets of weights, and of losses, apart by one number
    losses = np.broadcast_to(problem.ln_y @ mark, len(weights))
    key = np.column_stack([weights @ mark, losses, *box, np.round(near.theta, MET)])
    _, first, member = np.unique(key, axis=0, return_index=True, return_inverse=True)
    found = minimize(problem.members(first), near.theta[first], weights[first], delta, (box[0][first], box[1][first]))
    return Solution(found.theta[member], found.objective[member], found.converged[member], found.iterations)
