"""What a fit will know before anything is trained: standard errors from the law's Jacobian at the planned runs.

Near its optimum a fit is linear regression. With J the derivatives of ln L by the parameters at the planned points, and
noise of standard deviation sigma in ln L, the estimates scatter with covariance sigma^2 * inflation * (J'J)^-1, and a
quantity g of the parameters with variance grad(g)' Cov grad(g) (the delta method). `inflation` is what the Huber loss
pays on Gaussian noise against least squares: pi / 2 for a threshold far below the noise (Huber 1964, eq. 2.6).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.analysis.laws import Array, Law
from experiments.analysis.problem import make_problem

STEP = 1e-5  # relative, of the central differences
LEAST_NOISE = 1e-9  # of ln L: noise-free data would make every interval zero over zero
Quantity = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True, eq=False)
class Expected:
    """The expected scatter of a fit: `covariance` of the scaled parameters, `condition` of J'J in centred coordinates.

    A parameter is scaled by its size: the first column of J is d ln L / d ln p1.
    """

    params: Mapping[str, float]
    covariance: Array
    condition: float
    points: int
    variance: float  # of one observation of ln L as the loss counts it: covariance = variance * (J'J)^-1

    def gradient(self, quantity: Quantity) -> Array:
        """Of a quantity, by the scaled parameters."""
        return np.array([_derivative(quantity, self.params, name) for name in self.params])

    def stderr(self, quantity: Quantity) -> float:
        """Standard error of a quantity computed from the parameters; inf where the runs do not tell it."""
        if not np.isfinite(self.covariance).all():
            return math.inf
        gradient = self.gradient(quantity)
        variance = float(gradient @ self.covariance @ gradient)
        return math.sqrt(variance) if math.isfinite(variance) and variance >= 0 else math.inf

    def stderr_of(self, name: str) -> float:
        """Standard error of one parameter."""
        return self.stderr(lambda params: params[name])

    def width(self, level: float = 0.95) -> float:
        """Half the width of an interval in standard errors: Student's t, as the noise is estimated from residuals."""
        from scipy.stats import t

        return float(t.ppf(0.5 + level / 2, max(1, self.points - len(self.params))))


def expected(
    law: Law, params: Mapping[str, float], table: pd.DataFrame, noise: float, loss: str = "huber", delta: float = 1e-3
) -> Expected:
    """What fitting `law` to runs with the inputs of `table` would know of its parameters, were they `params`.

    `noise` is the standard deviation of ln L from run to run. With fewer distinct points than parameters nothing is
    known: every standard error is inf.
    """
    J = jacobian(law, params, table)
    distinct = len(table[[*law.columns, *law.label_columns]].drop_duplicates())
    variance = noise**2 * inflation(loss, delta, noise)
    covariance = np.full((len(params), len(params)), np.inf)
    if distinct >= len(params):
        covariance = variance * _inverse_of_gram(J)
    return Expected(dict(params), covariance, condition(law, params, table), len(table), variance)


def jacobian(law: Law, params: Mapping[str, float], table: pd.DataFrame) -> Array:
    """d ln L / d p * scale(p) at each row of `table`, shape (rows, parameters), by central differences."""
    columns = []
    for name in params:
        above, below = (law.predict(moved, table) for moved in _moved(params, name))
        columns.append((np.log(above) - np.log(below)) / (2 * STEP))
    return np.stack(columns, axis=1)


def _moved(params: Mapping[str, float], name: str) -> tuple[dict[str, float], dict[str, float]]:
    step = STEP * _scale(params[name])
    return {**params, name: params[name] + step}, {**params, name: params[name] - step}


def _scale(value: float) -> float:
    return abs(value) or 1.0


def _derivative(quantity: Quantity, params: Mapping[str, float], name: str) -> float:
    above, below = (quantity(moved) for moved in _moved(params, name))
    return (above - below) / (2 * STEP)


def _inverse_of_gram(J: Array) -> Array:
    """(J'J)^-1 from the QR factors of J with columns of one length: J'J itself would square the condition number."""
    lengths = np.linalg.norm(J, axis=0)
    if not np.all(lengths > 0):
        return np.full((J.shape[1], J.shape[1]), np.inf)
    R = np.linalg.qr(J / lengths, mode="r")
    if np.abs(np.diag(R)).min() < 1e-13:
        return np.full((J.shape[1], J.shape[1]), np.inf)
    inverse = np.linalg.inv(R)
    return (inverse @ inverse.T) / np.outer(lengths, lengths)


def condition(law: Law, params: Mapping[str, float], table: pd.DataFrame) -> float:
    """Condition number of J'J as a fit reports it: of logarithms where it is fitted by them, inputs centred."""
    if len(table) < len(params):
        return math.inf
    y = "expected loss"
    problem = make_problem(law, table.assign(**{y: law.predict(params, table)}), y)
    values = np.linalg.svd(problem.model.expand(problem.coordinates(params)).jacobian[0], compute_uv=False)
    return float((values[0] / values[-1]) ** 2) if values[-1] > 0 else math.inf


def inflation(loss: str, delta: float, noise: float) -> float:
    """Variance of the estimate on Gaussian noise over that of least squares, for a Huber loss with threshold `delta`.

    E[psi^2] / E[psi']^2 in units of the noise; lad is its limit pi / 2, lsq is 1.
    """
    if loss == "lsq" or noise <= 0:
        return 1.0
    k = delta / noise
    if loss == "lad" or k < 1e-6:
        return math.pi / 2
    inside = math.erf(k / math.sqrt(2))
    density = math.exp(-k * k / 2) / math.sqrt(2 * math.pi)
    return (inside - 2 * k * density + k * k * (1 - inside)) / inside**2


def allocation_exponent(law: Law) -> Quantity | None:
    """The exponent a of N_opt ~ C^a where the law is a sum of one power of N and one of D: beta / (alpha + beta)."""
    if not {"alpha", "beta"} <= set(law.parameters) or law.name != "chinchilla":
        return None
    return lambda params: params["beta"] / (params["alpha"] + params["beta"])


def log_prediction(law: Law, row: Mapping[str, float]) -> Quantity:
    """ln L at one point, as a quantity."""
    table = pd.DataFrame([row])
    return lambda params: float(np.log(law.predict(params, table)[0]))


def narrowing(now: Expected, rows: Array, quantity: Quantity | None = None) -> Array:
    """Standard error with one more run over that without, for each run whose row of the Jacobian is given.

    For a quantity with gradient g its variance falls by (g'Mj)^2 / (1 + j'Mj), M being (J'J)^-1 (c-optimality). Without
    one, the mean over all directions: the volume of the confidence region shrinks by sqrt(1 + j'Mj) (D-optimality).
    Atkinson, Donev & Tobias 2007, Optimum Experimental Designs, ch. 10.
    """
    M = now.covariance / now.variance
    gain = np.einsum("ip,pq,iq->i", rows, M, rows)
    if quantity is None:
        return np.asarray((1 + gain) ** (-0.5 / len(now.params)))
    gradient = now.gradient(quantity)
    taken = (rows @ M @ gradient) ** 2 / (1 + gain)
    return np.asarray(np.sqrt(np.maximum(0.0, 1 - taken / (gradient @ M @ gradient))))


def residual_noise(residuals: "Array | pd.Series[float]", parameters: int) -> float:
    """The noise of ln L behind the residuals of a fit: their root mean square over n - p degrees of freedom.

    Not a median: a Huber fit with a small threshold passes through as many points as it has parameters, so the small
    residuals are smaller than the noise.
    """
    squares = np.sum(np.asarray(residuals, dtype=np.float64) ** 2)
    return max(LEAST_NOISE, float(np.sqrt(squares / max(1, len(residuals) - parameters))))
