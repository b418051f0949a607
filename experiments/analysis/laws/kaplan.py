"""Kaplan's joint law in size and data: one power of a sum, without a floor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from experiments.analysis.laws.base import Array, Design, Law, Parameter, exponent, log_sum, positive
from experiments.analysis.laws.power import over_sizes
from experiments.analysis.laws.registry import register

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class Kaplan(Law):
    """L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5).

    With unlimited data it is (N_c/N)^alpha_N, with an unlimited model (D_c/D)^alpha_D. It has no floor, so it
    underestimates the loss far beyond the data.
    """

    n: str = "n_params_non_embedding"
    d: str = "tokens"
    name: ClassVar[str] = "kaplan"
    title: ClassVar[str] = "Kaplan's joint law"
    source: ClassVar[str] = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5"

    @property
    def quantities(self) -> tuple[Parameter, ...]:
        return (
            positive("N_c", 1e-30, 1e60, (self.n, 1.0)),
            positive("D_c", 1e-30, 1e60, (self.d, 1.0)),
            exponent("alpha_N"),
            exponent("alpha_D"),
        )

    @property
    def formula(self) -> str:
        return f"((N_c / {self.n})^(alpha_N / alpha_D) + D_c / {self.d})^alpha_D"

    def log_loss(self, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        ratio = theta["alpha_N"] / theta["alpha_D"]
        return theta["alpha_D"] * log_sum(ratio * (theta["N_c"] - x[self.n]), theta["D_c"] - x[self.d])

    def complete(self, trial: dict[str, Array], x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
        """L^(1/alpha_D) is linear in N_c^(alpha_N/alpha_D) and D_c."""
        import numpy as np

        from experiments.analysis.starts import positive_least_squares

        ratio = trial["alpha_N"] / trial["alpha_D"]
        log_target = ln_y / trial["alpha_D"]
        log_basis = np.stack([-ratio * x[self.n], np.broadcast_to(-x[self.d], log_target.shape)], axis=-1)
        size, data = np.split(positive_least_squares(log_basis, log_target), 2, axis=-1)
        return trial | {"N_c": size / ratio, "D_c": data}

    def identifying_design(self) -> Design:
        return over_sizes(self.n, self.d, {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103})
