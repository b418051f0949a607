"""One table to fit with one law: the model in centred coordinates, ln of the losses, and the box of the coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.analysis import solver
from experiments.analysis.laws import Array, Law


@dataclass(frozen=True)
class Expansion:
    """ln L (batch, points) and its Jacobian (batch, points, parameters)."""

    log_loss: Array
    jacobian: Array


@dataclass(frozen=True)
class Model:
    """ln L of a sum of power terms, from its design tensor."""

    design: Array

    @property
    def size(self) -> int:
        """Floats per batch member while it is solved."""
        return self.design.size

    def log_loss(self, theta: Array) -> Array:
        """ln L (batch, points) at coordinates (batch, parameters)."""
        total: Array = np.logaddexp.reduce(np.einsum("nkp,bp->bnk", self.design, theta, optimize=True), axis=2)
        return total

    def expand(self, theta: Array) -> Expansion:
        """ln L and its Jacobian there."""
        log_terms = np.einsum("nkp,bp->bnk", self.design, theta, optimize=True)
        total = np.logaddexp.reduce(log_terms, axis=2)
        jacobian = np.einsum("bnk,nkp->bnp", np.exp(log_terms - total[..., None]), self.design, optimize=True)
        return Expansion(total, jacobian)


@dataclass(frozen=True, eq=False)
class Problem(solver.Problem):
    """A solver's problem that knows its law and the centres of its inputs."""

    law: Law
    centres: Mapping[str, float]

    @property
    def model(self) -> Model:
        """The law on this table."""
        return Model(self.design)

    def residuals(self, theta: Array) -> Array:
        """ln L(theta) - ln y, shape (batch, points)."""
        return solver.residuals(self, theta)

    def starts(self, keep: int = 8) -> Array:
        """Starting points by variable projection, at most `keep`: (starts, parameters)."""
        return solver.starts(self, keep)

    def _shift(self, at: Mapping[str, Array]) -> dict[str, Array]:
        zero = np.zeros(len(next(iter(at.values()))))
        return {
            term.coefficient: sum((at[e] * self.centres.get(c, 0.0) for e, c in term.exponents), zero)
            for term in self.law.terms
        }

    def natural(self, theta: Array) -> dict[str, Array]:
        """Parameters in their own units, each (batch,), from coordinates (batch, parameters)."""
        at = dict(zip(self.law.parameters, theta.T, strict=True))
        shift = self._shift(at)
        return {name: np.exp(value + shift[name]) if name in shift else value for name, value in at.items()}

    def coordinates(self, params: Mapping[str, npt.ArrayLike]) -> Array:
        """The inverse of `natural`: (batch, parameters)."""
        at = {name: np.atleast_1d(np.asarray(params[name], dtype=float)) for name in self.law.parameters}
        shift = self._shift(at)
        moved = [np.log(value) - shift[name] if name in shift else value for name, value in at.items()]
        return np.stack(np.broadcast_arrays(*moved), axis=-1)


def make_problem(law: Law, used: pd.DataFrame, y: str, *, centre: bool = True) -> Problem:
    """The problem of fitting `law` to column `y` of `used`, in a wide box: terms from 1e-9 of the loss, exponents 0-8.

    `centre=False` keeps the inputs as they are, so that each coordinate belongs to one parameter alone and may be held
    fixed: a profile needs that, a fit converges better without.
    """
    centres = {name: float(np.log(used[name]).mean()) if centre else 0.0 for name in law.columns}
    ln_y = np.log(used[y].to_numpy(dtype=float))
    design = law.design(used, centres)
    terms, exponents = len(law.coefficients), len(law.exponents)
    smallest = np.where([symbol == law.floor for symbol in law.coefficients], np.log(1e-6), np.log(1e-9))
    # A coefficient is bounded by its term at the middle of the inputs, so uncentred bounds are wide enough for both.
    reach = 0.0 if centre else 8.0 * sum(abs(float(np.log(used[name]).mean())) for name in law.columns)
    lower = np.concatenate([ln_y.min() + smallest, np.zeros(exponents)])
    upper = np.concatenate([np.full(terms, ln_y.max() + np.log(10.0)), np.full(exponents, 8.0)])
    if not centre:
        scaled = np.array([symbol != law.floor for symbol in law.coefficients] + [False] * exponents)
        lower, upper = lower - reach * scaled, upper + reach * scaled
    return Problem(design, ln_y, lower, upper, terms, law, centres)
