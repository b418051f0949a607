"""ln L of a law at many coordinates at once, with first and second derivatives: from a design tensor or torch.func.

Both models answer the same questions in float64 numpy: `log_loss(theta)`, and `expand(theta)` with first and second
derivatives summed over the points under any weights, which is all that a Newton method needs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from experiments.analysis.laws import Array, Law, PowerTerms

if TYPE_CHECKING:
    import torch

CACHE = 30_000  # floats: arrays of this size stay in a core's cache from one operation to the next
MEMORY = 2_000_000  # floats: torch.func costs milliseconds a call, so its batches are larger
STEEPEST = 600.0  # a logarithm whose exp is still a float64


class Expansion(Protocol):
    """ln L at a batch of coordinates, and what a Newton method asks of its derivatives; weights are (batch, points)."""

    @property
    def log_loss(self) -> Array:
        """ln L (batch, points)."""

    @property
    def jacobian(self) -> Array:
        """Its first derivatives J (batch, points, parameters)."""

    def gradient(self, first: Array) -> Array:
        """The sum over points of first * J, (batch, parameters)."""

    def hessian(self, first: Array, second: Array | None = None) -> Array:
        """The sum over points of first * J J' + second * (second derivatives): (batch, parameters, parameters)."""


class Model(Protocol):
    """What the solver asks of a law on a table."""

    block: int  # how many members of a batch are best solved at once

    def log_loss(self, theta: Array) -> Array:
        """ln L (batch, points) at coordinates (batch, parameters)."""

    def expand(self, theta: Array) -> Expansion:
        """ln L and its derivatives there."""

    def working(self) -> AbstractContextManager[None]:
        """Held while many expansions follow each other."""


@dataclass(frozen=True, eq=False)
class _Term:
    """One term of a sum of power terms: the parameters it has, its design (points, those), the same as (those, points)
    or, for the floor, (those, 1), and the largest size of each of its columns."""

    used: npt.NDArray[np.intp]
    columns: Array
    rows: Array
    largest: Array


class DesignModel:
    """Exact for sums of power terms: with the shares w of the terms in the loss, J = sum_k w_k Z_k and the second
    derivative is sum_k w_k Z_k Z_k' - J J'.

    So all that is summed over the points are products of two columns of the design, and those are the same for every
    member and iteration: one matrix product for each pair of terms, and no Jacobian.
    """

    def __init__(self, design: Array) -> None:
        self.points, _, self.size = design.shape
        self.block = max(1, CACHE // self.points)
        self.terms = [_term(columns) for columns in design.transpose(1, 0, 2)]
        self.pairs = list(combinations_with_replacement(range(len(self.terms)), 2))
        products, places = zip(*(self._products(*pair) for pair in self.pairs), strict=True)
        self.products, self.places = list(products), np.concatenate(places)

    def _products(self, k: int, m: int) -> tuple[Array, Array]:
        """Products of the columns of two terms (points, products), and where each belongs (products, size * size)."""
        one, other = self.terms[k], self.terms[m]
        pairs = [(i, j) for i in range(len(one.used)) for j in range(len(other.used)) if k != m or i <= j]
        places = np.zeros((len(pairs), self.size, self.size))
        for row, (i, j) in zip(places, pairs, strict=True):
            p, q = one.used[i], other.used[j]
            row[p, q] += 1.0
            row[q, p] += float(k != m or i != j)
        return (
            np.stack([one.columns[:, i] * other.columns[:, j] for i, j in pairs], axis=1),
            places.reshape(len(pairs), -1),
        )

    def log_loss(self, theta: Array) -> Array:
        return self.expand(theta).log_loss

    def working(self) -> AbstractContextManager[None]:
        return nullcontext()

    def expand(self, theta: Array) -> "DesignExpansion":
        logs = [theta[:, term.used] @ term.rows for term in self.terms]
        safe = all((np.abs(theta[:, term.used]) @ term.largest).max() < STEEPEST for term in self.terms)
        shift = 0.0 if safe else reduce(np.maximum, logs)
        shares = [np.exp(log - shift) for log in logs]
        total = np.broadcast_to(sum(shares), (len(theta), self.points))
        inverse = 1.0 / total
        return DesignExpansion(self, np.log(total) + shift, [share * inverse for share in shares])


@dataclass(frozen=True, eq=False)
class DesignExpansion:
    """`Expansion` of a sum of power terms: the share of each term in the loss, (batch, points)."""

    model: DesignModel
    log_loss: Array
    shares: list[Array]

    @property
    def jacobian(self) -> Array:
        jacobian = np.zeros((*self.log_loss.shape, self.model.size))
        for share, term in zip(self.shares, self.model.terms, strict=True):
            jacobian[..., term.used] += share[..., None] * term.columns
        return jacobian

    def gradient(self, first: Array) -> Array:
        gradient = np.zeros((len(first), self.model.size))
        for share, term in zip(self.shares, self.model.terms, strict=True):
            gradient[:, term.used] += (first * share) @ term.columns
        return gradient

    def hessian(self, first: Array, second: Array | None = None) -> Array:
        mixed = first if second is None else first - second
        weighted = [mixed * share for share in self.shares]
        sums = []
        for (k, m), products in zip(self.model.pairs, self.model.products, strict=True):
            of_both = weighted[k] if k != m or second is None else weighted[k] + second
            sums.append((of_both * self.shares[m]) @ products)
        size = self.model.size
        return np.asarray(np.concatenate(sums, axis=1) @ self.model.places).reshape(-1, size, size)


def _term(columns: Array) -> _Term:
    used = np.flatnonzero(columns.any(axis=0))
    own = np.ascontiguousarray(columns[:, used])
    alike = bool((own == own[0]).all())  # the floor: one exp for all points
    return _Term(used, own, np.ascontiguousarray(own[:1].T if alike else own.T), np.abs(own).max(axis=0))


@dataclass(frozen=True, eq=False)
class TorchExpansion:
    """`Expansion` by torch.func: `curvature` sums second derivatives over the points with the weights given."""

    log_loss: Array
    jacobian: Array
    curvature: Callable[[Array], Array]

    def gradient(self, first: Array) -> Array:
        return np.asarray((self.jacobian.transpose(0, 2, 1) @ first[..., None])[..., 0])

    def hessian(self, first: Array, second: Array | None = None) -> Array:
        squares = self.jacobian.transpose(0, 2, 1) @ (self.jacobian * first[..., None])
        return np.asarray(squares if second is None else squares + self.curvature(second))


class TorchModel:
    """Any law, by reverse mode: a point's loss has one gradient, which makes its row of the Jacobian."""

    def __init__(self, law: Law, x: Mapping[str, Array]) -> None:
        import torch

        self.law = law
        self.x = {name: torch.as_tensor(values) for name, values in x.items()}
        self.points = len(next(iter(x.values())))
        self.block = max(1, MEMORY // (self.points * len(law.parameters) ** 2))

    def _at(self, theta: "torch.Tensor", x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """ln L at coordinates (..., parameters)."""
        parts = {symbol: theta[..., i : i + 1] for i, symbol in enumerate(self.law.parameters)}
        return self.law.log_loss(parts, x)

    def log_loss(self, theta: Array) -> Array:
        import torch

        log_loss: Array = self._at(torch.as_tensor(theta), self.x).expand(len(theta), self.points).numpy()
        return log_loss

    def expand(self, theta: Array) -> TorchExpansion:
        import torch
        from torch.func import grad, jacrev, vmap

        at = torch.as_tensor(theta)
        points = {name: values[:, None] for name, values in self.x.items()}

        def at_point(one: torch.Tensor, x: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return self._at(one, x).squeeze()

        def weighted(one: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return (self._at(one, self.x) * weights).sum()

        jacobian: Array = vmap(vmap(grad(at_point), (None, 0)), (0, None))(at, points).numpy()

        def curvature(second: Array) -> Array:
            curved: Array = vmap(jacrev(grad(weighted)))(at, torch.as_tensor(second)).numpy()
            return curved

        return TorchExpansion(self.log_loss(theta), jacobian, curvature)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Operations this small are up to thirty times slower when torch splits them between busy cores."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def model_of(law: Law, x: Mapping[str, Array]) -> Model:
    """The fast model where the law is a sum of power terms, else the general one."""
    return DesignModel(law.design(x)) if isinstance(law, PowerTerms) else TorchModel(law, x)
