"""Laws that are sums of positive power terms, L = sum_k C_k * prod_j x_j^-e_kj.

In the logarithms of the coefficients and in the plain exponents each ln(term) is linear, so value, gradient and Hessian
all follow from one design tensor and a law is the list of its terms.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from experiments.analysis.laws.base import Array, Columns, Law, Parameter, coefficient, exponent, floor, log_sum

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch


@dataclass(frozen=True)
class Term:
    """One summand C * prod_j x_j^-e_j * prod_j c_j^-e_j: the symbol of its coefficient, (exponent symbol, column) pairs
    and (exponent symbol, constant) pairs. A pair that stands twice counts twice."""

    coefficient: str
    exponents: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class PowerTerms(Law):
    """A sum of power terms; a subclass lists them."""

    @property
    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The summands, the constant first."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The input columns, each once, in the order the terms name them."""
        return tuple(dict.fromkeys(column for term in self.terms for _, column in term.exponents))

    @property
    def quantities(self) -> tuple[Parameter, ...]:
        """The coefficients, then the exponents, each once."""
        symbols = dict.fromkeys(symbol for term in self.terms for symbol, _ in term.exponents)
        return (*map(_coefficient, self.terms), *map(exponent, symbols))

    def log_loss(self, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """The general path: for the laws' tests, and for laws built on a sum."""
        return log_sum(*(_log_term(term, theta, x) for term in self.terms))

    def design(self, x: Mapping[str, Array]) -> Array:
        """The tensor Z (points, terms, parameters) with ln(term) = Z @ theta, from (centred) ln x by column."""
        import numpy as np

        points = len(next(iter(x.values())))
        place = {symbol: i for i, symbol in enumerate(self.parameters)}
        design = np.zeros((points, len(self.terms), len(place)))
        for k, term in enumerate(self.terms):
            design[:, k, place[term.coefficient]] = 1.0
            for symbol, column in term.exponents:
                design[:, k, place[symbol]] -= x[column]
            for symbol, constant in term.constants:
                design[:, k, place[symbol]] -= np.log(constant)
        return design

    def complete(self, trial: dict[str, Array], x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
        """As `Law.complete`, from the design tensor."""
        import numpy as np

        from experiments.analysis.starts import positive_least_squares

        count = len(self.terms)
        powers = np.concatenate([trial[symbol] for symbol in self.parameters[count:]], axis=1)
        log_basis = np.einsum("nkp,tp->tnk", self.design(x)[..., count:], powers, optimize=True)
        solved = positive_least_squares(log_basis, np.broadcast_to(ln_y, log_basis.shape[:2]))
        return trial | {symbol: solved[:, k : k + 1] for k, symbol in enumerate(self.coefficients)}

    def predict(self, params: Mapping[str, "npt.ArrayLike"], table: Columns) -> Array:
        """As `Law.predict`, without torch."""
        import numpy as np

        from experiments.analysis.coordinates import coordinates, encode

        theta = coordinates(self, params, {})
        log_terms = np.einsum("nkp,bp->bnk", self.design(encode(self, table)), theta, optimize=True)
        loss: Array = np.exp(np.logaddexp.reduce(log_terms, axis=2))
        return loss if any(np.ndim(params[name]) for name in self.parameters) else loss[0]


def _coefficient(term: Term) -> Parameter:
    if not term.exponents:
        return floor(term.coefficient)
    return coefficient(term.coefficient, *((column, symbol) for symbol, column in term.exponents))


def _log_term(term: Term, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    log_term = theta[term.coefficient]
    for symbol, column in term.exponents:
        log_term = log_term - theta[symbol] * x[column]
    for symbol, constant in term.constants:
        log_term = log_term - theta[symbol] * log(constant)
    return log_term
