"""What a law is: its parameters with units, bounds and trial values, and its logarithm as a function of them.

Laws are read by the driver too (their names are what a study may write), so nothing heavy is imported at module level.
A law works in *coordinates*: positive parameters enter as logarithms and inputs as ln x minus a centre. Uncentred, J'J
of the Chinchilla form is a thousand times worse conditioned. Centring is a change of the inputs' units, so what a
parameter's value becomes in the table's own units follows from its unit (`Parameter.scales`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import torch

    Array = npt.NDArray[np.float64]
    Columns = Mapping[str, npt.ArrayLike] | pd.DataFrame
else:
    Array = Columns = Any

EXPONENTS = (0.05, 0.1, 0.16, 0.23, 0.31, 0.4, 0.5, 0.62, 0.76, 0.92, 1.1, 1.4, 1.8, 2.4)
FEW_EXPONENTS = (0.08, 0.2, 0.35, 0.55, 0.9, 1.5)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    `log`: positive, fitted as its logarithm. `of_loss`: a loss itself, so its bounds are multiples of the measured
    losses and starts solve for it. `scales`: (column, power) pairs, its unit; a power is a number or an exponent's
    symbol. `lower` and `upper` are values in centred inputs; `grid` holds the values that starts try.
    """

    symbol: str
    log: bool = False
    of_loss: bool = False
    scales: tuple[tuple[str, str | float], ...] = ()
    lower: float = 0.0
    upper: float = 8.0
    grid: tuple[float, ...] = ()

    @property
    def unit(self) -> str:
        """Its unit when the loss is in nats per token."""
        powers: dict[tuple[str, str | float], int] = {}
        for scale in self.scales:
            powers[scale] = powers.get(scale, 0) + 1
        parts = ["nats/token"] * self.of_loss
        for (column, power), times in powers.items():
            parts.append(column if power == 1.0 else f"{column}^{power if times == 1 else f'({times} {power})'}")
        return " * ".join(parts) or "no unit"


def floor(symbol: str = "E") -> Parameter:
    """The loss that more of the inputs does not remove; below a millionth of the lowest loss it is zero."""
    return Parameter(symbol, log=True, of_loss=True, lower=1e-6, upper=10.0)


def coefficient(symbol: str, *scales: tuple[str, str | float]) -> Parameter:
    """A summand of the loss at the centre of the inputs."""
    return Parameter(symbol, log=True, of_loss=True, scales=scales, lower=1e-9, upper=10.0)


def exponent(symbol: str, grid: tuple[float, ...] = EXPONENTS) -> Parameter:
    """A power that the loss falls by along an input."""
    return Parameter(symbol, grid=grid)


def positive(
    symbol: str, lower: float, upper: float, *scales: tuple[str, str | float], grid: tuple[float, ...] = ()
) -> Parameter:
    """A positive number that is not a loss: a threshold, a multiplier, a number of epochs."""
    return Parameter(symbol, log=True, scales=scales, lower=lower, upper=upper, grid=grid)


def signed(symbol: str, reach: float, grid: tuple[float, ...] = ()) -> Parameter:
    """A number of either sign, at most `reach` in size."""
    return Parameter(symbol, lower=-reach, upper=reach, grid=grid)


@dataclass(frozen=True, eq=False)
class Design:
    """A stated experiment that identifies a law: `table` of inputs, planted `params`, `noise` (sd of ln L), the kind of
    interval whose coverage is promised, and `held_out`, inputs of one prediction."""

    table: "pd.DataFrame"
    params: Mapping[str, float]
    noise: float
    held_out: "pd.DataFrame"
    interval: Literal["bootstrap", "profile"] = "bootstrap"


@dataclass(frozen=True)
class Law(ABC):
    """A functional form. Columns are chosen when the law is made; the parameters come with each fit.

    A new law states `name`, `title`, `source`, `formula`, its input columns as fields, its `quantities` and its
    `log_loss`; derivatives come from torch.func. A sum of power terms is faster as a `PowerTerms`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    labels: ClassVar[tuple[str, ...]] = ()  # the inputs that hold names instead of numbers

    @property
    @abstractmethod
    def quantities(self) -> tuple[Parameter, ...]:
        """Every parameter, in the order of the coordinates."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """The law as a person writes it, with the column names that were chosen."""

    @abstractmethod
    def log_loss(self, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """ln L, shape (..., points), from coordinates (each (..., 1)) and ln inputs (each (points,)) by column."""

    @abstractmethod
    def identifying_design(self) -> Design:
        """A planted truth, and runs that are enough to find it."""

    @classmethod
    def inputs(cls) -> tuple[str, ...]:
        """The names under which a study chooses columns."""
        return tuple(field.name for field in fields(cls) if isinstance(field.default, str))

    @property
    def columns(self) -> tuple[str, ...]:
        """The input columns that hold numbers."""
        return tuple(getattr(self, name) for name in self.inputs() if name not in self.labels)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The input columns that hold names."""
        return tuple(getattr(self, name) for name in self.labels)

    @property
    def levels(self) -> Mapping[str, tuple[str, ...]]:
        """The names known in each label column, in the order of their codes."""
        return {}

    def bind(self, table: Columns) -> Self:
        """The law for this table; a law whose parameters depend on the table's labels learns them here."""
        return self

    @property
    def parameters(self) -> tuple[str, ...]:
        """The symbols, in the order of the coordinates."""
        return tuple(quantity.symbol for quantity in self.quantities)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """The parameters that are losses: E, A, B ..."""
        return tuple(quantity.symbol for quantity in self.quantities if quantity.of_loss)

    @property
    def exponents(self) -> tuple[str, ...]:
        """The plain powers: alpha, beta ... (positive: the loss falls along the column)."""
        return tuple(q.symbol for q in self.quantities if not q.log and q.lower == 0.0)

    @property
    def floor(self) -> str | None:
        """Symbol of the irreducible loss; None where the law goes to zero."""
        return next((q.symbol for q in self.quantities if q.of_loss and not q.scales), None)

    @property
    def interval(self) -> Literal["bootstrap", "profile"]:
        """The kind of interval that is known to cover for this law: a fit's default."""
        return self.identifying_design().interval

    def unit(self, symbol: str) -> str:
        """Unit of one parameter when the loss is in nats per token; exponents have none."""
        return next(quantity.unit for quantity in self.quantities if quantity.symbol == symbol)

    def centres(self, x: Mapping[str, Array]) -> dict[str, float]:
        """Mean of ln x for each column that some parameter's unit carries."""
        scaled = dict.fromkeys(column for quantity in self.quantities for column, _ in quantity.scales)
        return {column: float(x[column].mean()) for column in scaled}

    def bounds(self, x: Mapping[str, Array], ln_y: Array) -> tuple[Array, Array]:
        """The box of the coordinates, (parameters,) each."""
        from experiments.analysis.coordinates import box

        return box(self, ln_y)

    def grids(self, x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
        """Trial values of the coordinates that starts do not solve for."""
        from experiments.analysis.coordinates import grids

        return grids(self)

    def complete(self, trial: dict[str, Array], x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
        """`trial` (each (trials, 1)) with the coordinates that are linear in the loss solved for."""
        from experiments.analysis.starts import solve_linear

        return solve_linear(self, trial, x, ln_y)

    def predict(self, params: Mapping[str, "npt.ArrayLike"], table: Columns) -> Array:
        """The loss at each row of `table`, shape (rows,); arrays of draws as parameters give (draws, rows)."""
        from experiments.analysis.coordinates import predict

        return predict(self, params, table)


def log_sum(*log_terms: "torch.Tensor") -> "torch.Tensor":
    """ln of a sum from the logarithms of its terms."""
    import torch

    return torch.logsumexp(torch.stack(torch.broadcast_tensors(*log_terms)), dim=0)
