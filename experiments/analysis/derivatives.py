"""ln L of a law at many coordinates at once, with first and second derivatives: from a design tensor or torch.func.

Both models answer the same questions in float64 numpy: `log_loss(theta)`, and `expand(theta)` with the Jacobian and
second derivatives contracted over the points, which is all that a Newton method needs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from experiments.analysis.laws import Array, Law, PowerTerms

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Expansion:
    """ln L (batch, points), its Jacobian (batch, points, parameters), and `curve`, which contracts the second
    derivatives with a weight per point: (batch, points) to (batch, parameters, parameters)."""

    log_loss: Array
    jacobian: Array
    curve: Callable[[Array], Array]


class Model(Protocol):
    """What the solver asks of a law on a table."""

    size: int  # floats per batch member while it expands: bounds how many members are solved at once

    def log_loss(self, theta: Array) -> Array:
        """ln L (batch, points) at coordinates (batch, parameters)."""

    def expand(self, theta: Array) -> Expansion:
        """ln L and its derivatives there."""


class DesignModel:
    """Exact for sums of power terms: with softmax weights w over the terms, J = sum_k w_k Z_k and the second derivative
    is sum_k w_k Z_k Z_k' - J J'."""

    def __init__(self, design: Array) -> None:
        self.design = design
        points, terms, parameters = design.shape
        self.size = design.size
        self._flat = np.ascontiguousarray(design.reshape(-1, parameters).T)
        self._outer = (design[..., :, None] * design[..., None, :]).reshape(points * terms, parameters**2)

    def _log_terms(self, theta: Array) -> Array:
        points, terms, _ = self.design.shape
        return (theta @ self._flat).reshape(-1, points, terms)

    def log_loss(self, theta: Array) -> Array:
        log_terms = self._log_terms(theta)
        largest = log_terms.max(axis=2)
        total: Array = np.exp(log_terms - largest[..., None]).sum(axis=2)
        return np.log(total) + largest

    def expand(self, theta: Array) -> Expansion:
        log_terms = self._log_terms(theta)
        largest = log_terms.max(axis=2, keepdims=True)
        shares = np.exp(log_terms - largest)
        total = shares.sum(axis=2, keepdims=True)
        shares /= total
        jacobian = np.einsum("bnk,nkp->bnp", shares, self.design, optimize=True)

        def curve(weights: Array) -> Array:
            size = theta.shape[1]
            terms = ((weights[..., None] * shares).reshape(len(theta), -1) @ self._outer).reshape(-1, size, size)
            return terms - jacobian.transpose(0, 2, 1) @ (jacobian * weights[..., None])

        return Expansion((np.log(total) + largest)[..., 0], jacobian, curve)


class TorchModel:
    """Any law, by reverse mode: a point's loss has one gradient, which makes its row of the Jacobian."""

    def __init__(self, law: Law, x: Mapping[str, Array]) -> None:
        import torch

        self.law = law
        self.x = {name: torch.as_tensor(values) for name, values in x.items()}
        self.points = len(next(iter(x.values())))
        self.size = self.points * len(law.parameters) ** 2

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

        def curve(weights: Array) -> Array:
            curved: Array = vmap(jacrev(grad(weighted)))(at, torch.as_tensor(weights)).numpy()
            return curved

        jacobian = vmap(vmap(grad(at_point), (None, 0)), (0, None))(at, points)
        return Expansion(self.log_loss(theta), jacobian.numpy(), curve)


def model_of(law: Law, x: Mapping[str, Array]) -> Model:
    """The fast model where the law is a sum of power terms, else the general one."""
    return DesignModel(law.design(x)) if isinstance(law, PowerTerms) else TorchModel(law, x)
