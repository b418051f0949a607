"""ln L of a law at many coordinates at once, with first and second derivatives: from a design tensor or torch.func.

Both models answer the same questions in float64 numpy: `log_loss(theta)`, and `expand(theta)` with the Jacobian and
second derivatives contracted over the points, which is all that a Newton method needs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from experiments.analysis.laws import Array, Law, PowerTerms

if TYPE_CHECKING:
    import torch

CACHE = 240_000  # floats: a batch of design tensors that a core's cache holds
MEMORY = 2_000_000  # floats: torch.func costs milliseconds a call, so its batches are larger


@dataclass(frozen=True)
class Expansion:
    """ln L (batch, points), its Jacobian (batch, points, parameters), and `hessian(first, second)`, (batch, parameters,
    parameters): the sum over points of first * J J' + second * (second derivatives), each weight (batch, points)."""

    log_loss: Array
    jacobian: Array
    hessian: Callable[[Array, Array], Array]


class Model(Protocol):
    """What the solver asks of a law on a table."""

    block: int  # how many members of a batch are best solved at once

    def log_loss(self, theta: Array) -> Array:
        """ln L (batch, points) at coordinates (batch, parameters)."""

    def expand(self, theta: Array) -> Expansion:
        """ln L and its derivatives there."""

    def working(self) -> AbstractContextManager[None]:
        """Held while many expansions follow each other."""


class DesignModel:
    """Exact for sums of power terms: with softmax weights w over the terms, J = sum_k w_k Z_k and the second derivative
    is sum_k w_k Z_k Z_k' - J J'. Points are the last axis of every array, where numpy is fast."""

    def __init__(self, design: Array) -> None:
        self.block = max(1, CACHE // design.size)
        self._terms = np.ascontiguousarray(design.transpose(1, 2, 0))
        self._used = [np.flatnonzero(term.any(axis=1)) for term in self._terms]  # the parameters of each term
        self._outer = [
            np.ascontiguousarray((term[used][:, None] * term[used]).reshape(len(used) ** 2, -1).T)
            for term, used in zip(self._terms, self._used, strict=True)
        ]

    def _shares(self, theta: Array) -> tuple[Array, Array]:
        """ln L (batch, points) and the share of each term in it (terms, batch, points)."""
        log_terms = theta @ self._terms
        largest = log_terms.max(axis=0)
        shares = np.exp(log_terms - largest)
        total = shares.sum(axis=0)
        shares /= total
        return np.log(total) + largest, shares

    def log_loss(self, theta: Array) -> Array:
        return self._shares(theta)[0]

    def working(self) -> AbstractContextManager[None]:
        return nullcontext()

    def expand(self, theta: Array) -> Expansion:
        log_loss, shares = self._shares(theta)
        rows = np.zeros((len(theta), theta.shape[1], log_loss.shape[1]))  # the Jacobian's transpose
        for share, term, used in zip(shares, self._terms, self._used, strict=True):
            for p in used:
                rows[:, p] += share * term[p]

        def hessian(first: Array, second: Array) -> Array:
            total = (rows * (first - second)[:, None]) @ rows.transpose(0, 2, 1)
            for share, outer, used in zip(shares, self._outer, self._used, strict=True):
                total[:, used[:, None], used] += ((share * second) @ outer).reshape(-1, len(used), len(used))
            return total

        return Expansion(log_loss, rows.transpose(0, 2, 1), hessian)


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

    def expand(self, theta: Array) -> Expansion:
        import torch
        from torch.func import grad, jacrev, vmap

        at = torch.as_tensor(theta)
        points = {name: values[:, None] for name, values in self.x.items()}

        def at_point(one: torch.Tensor, x: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return self._at(one, x).squeeze()

        def weighted(one: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return (self._at(one, self.x) * weights).sum()

        jacobian: Array = vmap(vmap(grad(at_point), (None, 0)), (0, None))(at, points).numpy()

        def hessian(first: Array, second: Array) -> Array:
            curved: Array = vmap(jacrev(grad(weighted)))(at, torch.as_tensor(second)).numpy()
            return curved + jacobian.transpose(0, 2, 1) @ (jacobian * first[..., None])

        return Expansion(self.log_loss(theta), jacobian, hessian)

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
