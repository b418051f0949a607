"""One table to fit with one law: the model in centred coordinates, ln of the losses, and the box of the coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.analysis.coordinates import centred, coordinates, encode, natural
from experiments.analysis.derivatives import Model, model_of
from experiments.analysis.laws import Array, Law
from experiments.analysis.starts import spread_out, trials


@dataclass(frozen=True, eq=False)
class Problem:
    """`x`: centred ln inputs by column, `ln_y` (points,), `lower` and `upper` (parameters,), `centres` by column.

    `ln_y` is (batch, points) where every member of a batch has losses of its own: a residual bootstrap, many studies.
    """

    law: Law
    model: Model
    x: Mapping[str, Array]
    ln_y: Array
    lower: Array
    upper: Array
    centres: Mapping[str, float]

    def natural(self, theta: Array) -> dict[str, Array]:
        """Parameters in the table's units, each (batch,), from coordinates (batch, parameters)."""
        return natural(self.law, theta, self.centres)

    def coordinates(self, params: Mapping[str, npt.ArrayLike]) -> Array:
        """The inverse of `natural`: (batch, parameters)."""
        return coordinates(self.law, params, self.centres)

    def members(self, chosen: npt.NDArray[np.intp] | slice) -> "Problem":
        """The same problem for these members of a batch (indices or a slice)."""
        return self if self.ln_y.ndim == 1 else replace(self, ln_y=self.ln_y[chosen])

    @property
    def points(self) -> int:
        """How many runs are fitted."""
        return int(self.ln_y.shape[-1])

    def residuals(self, theta: Array) -> Array:
        """ln L(theta) - ln y, shape (batch, points)."""
        return self.model.log_loss(theta) - self.ln_y

    def starts(self, keep: int = 8) -> Array:
        """Starting points by variable projection, at most `keep`, the best first: (starts, parameters)."""
        theta = trials(self.law, self.x, self.ln_y)
        error = np.abs(self.residuals(theta)).sum(axis=1)
        return spread_out(theta, error, keep)


def make_problem(law: Law, used: pd.DataFrame, y: str, *, centre: bool = True) -> Problem:
    """The problem of fitting `law`, bound to its table (`Law.bind`), to column `y` of `used`.

    `centre=False` keeps the inputs as they are, so that each coordinate belongs to one parameter alone (its logarithm
    where it is positive) and may be held fixed: a profile needs that, a fit converges better without.
    """
    x = encode(law, used)
    centres = law.centres(x) if centre else {}
    ln_y = np.log(used[y].to_numpy(dtype=float))
    inputs = centred(x, centres)
    return Problem(law, model_of(law, inputs), inputs, ln_y, *law.bounds(inputs, ln_y), centres)
