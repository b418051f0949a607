"""The functional forms a table can be fitted with: immutable, with symbols, units and the paper they come from.

Every law here is a sum of positive power-law terms, L = sum_k C_k * prod_j x_j^-e_kj. In the logarithms of the
coefficients and in the plain exponents each ln(term) is linear, so value, gradient and Hessian all follow from one
design tensor (solver.py) and a new law is one class that lists its terms, plus one line in `LAWS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from nanogpt.config import UserError, did_you_mean

Array = npt.NDArray[np.float64]
Columns = Mapping[str, npt.ArrayLike] | pd.DataFrame


@dataclass(frozen=True)
class Term:
    """One summand C * prod_j x_j^-e_j: the symbol of its coefficient, and (exponent symbol, column) pairs."""

    coefficient: str
    exponents: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Law(ABC):
    """A sum of power-law terms. Columns are chosen when the law is made; the parameters come with each fit."""

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]

    @property
    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The summands, the constant first."""

    @property
    @abstractmethod
    def formula(self) -> str:
        """The law as a person writes it, with the column names that were chosen."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The input columns, each once, in the order the terms name them."""
        return tuple(dict.fromkeys(column for term in self.terms for _, column in term.exponents))

    @property
    def coefficients(self) -> tuple[str, ...]:
        """The linear parameters: E, A, B ... (positive)."""
        return tuple(term.coefficient for term in self.terms)

    @property
    def exponents(self) -> tuple[str, ...]:
        """The exponents, each once: alpha, beta ... (positive: the loss falls along the column)."""
        return tuple(dict.fromkeys(symbol for term in self.terms for symbol, _ in term.exponents))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Every parameter: coefficients first, then exponents."""
        return self.coefficients + self.exponents

    @property
    def floor(self) -> str | None:
        """Symbol of the irreducible loss, the term without inputs; None where the law goes to zero."""
        return next((term.coefficient for term in self.terms if not term.exponents), None)

    def unit(self, symbol: str) -> str:
        """Unit of one parameter when the loss is in nats per token; exponents have none."""
        term = next((term for term in self.terms if term.coefficient == symbol), None)
        if term is None:
            return "no unit"
        return " * ".join(["nats/token", *(f"{column}^{exponent}" for exponent, column in term.exponents)])

    def design(self, table: Columns, centres: Mapping[str, float]) -> Array:
        """The tensor Z (points, terms, parameters) with ln(term) = Z @ theta, theta = (ln coefficients, exponents).

        Inputs enter as ln x - centre: uncentred, J'J of the Chinchilla form is a thousand times worse conditioned.
        """
        logs = {c: np.log(np.asarray(table[c], dtype=np.float64)) - centres.get(c, 0.0) for c in self.columns}
        points = len(next(iter(logs.values())))
        place = {symbol: i for i, symbol in enumerate(self.parameters)}
        design = np.zeros((points, len(self.terms), len(place)))
        for k, term in enumerate(self.terms):
            design[:, k, place[term.coefficient]] = 1.0
            for symbol, column in term.exponents:
                design[:, k, place[symbol]] -= logs[column]
        return design

    def predict(self, params: Mapping[str, npt.ArrayLike], table: Columns) -> Array:
        """The loss at each row of `table`, shape (rows,); arrays of draws as parameters give (draws, rows)."""
        total: Array = np.zeros(())
        for term in self.terms:
            log_term = np.log(np.asarray(params[term.coefficient], dtype=np.float64))[..., None]
            for symbol, column in term.exponents:
                log_x = np.log(np.asarray(table[column], dtype=np.float64))
                log_term = log_term - np.asarray(params[symbol], dtype=np.float64)[..., None] * log_x
            total = total + np.exp(log_term)
        rows = len(np.asarray(table[self.columns[0]]))
        return np.broadcast_to(total, (*total.shape[:-1], rows))


@dataclass(frozen=True)
class PowerLaw(Law):
    """L = A * x^-alpha: a straight line on log-log axes (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1-1.3)."""

    x: str = "flops"
    name: ClassVar[str] = "power_law"
    title: ClassVar[str] = "power law"
    source: ClassVar[str] = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1-1.3"

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("A", (("alpha", self.x),)),)

    @property
    def formula(self) -> str:
        return f"A / {self.x}^alpha"


@dataclass(frozen=True)
class SaturatingPowerLaw(Law):
    """L = E + A * x^-alpha: a power law onto a floor E (Henighan et al. 2020, arXiv 2010.14701, eq. 1.1)."""

    x: str = "flops"
    name: ClassVar[str] = "saturating_power_law"
    title: ClassVar[str] = "saturating power law"
    source: ClassVar[str] = "Henighan et al. 2020, arXiv 2010.14701, eq. 1.1"

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("E"), Term("A", (("alpha", self.x),)))

    @property
    def formula(self) -> str:
        return f"E + A / {self.x}^alpha"


@dataclass(frozen=True)
class Chinchilla(Law):
    """L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, arXiv 2203.15556, eq. 10, approach 3).

    Assumes every run's learning rate was decayed to its own length and its other settings are near their best.
    """

    n: str = "n_params_non_embedding"
    d: str = "tokens"
    name: ClassVar[str] = "chinchilla"
    title: ClassVar[str] = "Chinchilla law"
    source: ClassVar[str] = "Hoffmann et al. 2022, arXiv 2203.15556, eq. 10"

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("E"), Term("A", (("alpha", self.n),)), Term("B", (("beta", self.d),)))

    @property
    def formula(self) -> str:
        return f"E + A / {self.n}^alpha + B / {self.d}^beta"


LAWS: dict[str, type[Law]] = {
    "power_law": PowerLaw,
    "saturating_power_law": SaturatingPowerLaw,
    "chinchilla": Chinchilla,
}


def make_law(name: str, **columns: str | None) -> Law:
    """The law `name` with the columns given (None means its default); UserError on an unknown name or input."""
    if name not in LAWS:
        raise UserError(f"law: {name!r} is not a known law{did_you_mean(name, LAWS)}")
    chosen = {key: value for key, value in columns.items() if value is not None}
    allowed = [field.name for field in fields(LAWS[name])]
    for key in chosen:
        if key not in allowed:
            raise UserError(f"law {name}: it has no input {key!r}; its inputs: {', '.join(allowed)}")
    return LAWS[name](**chosen)
