"""Muennighoff's data-constrained law: repeated tokens and excess parameters are worth less and less."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from experiments.analysis.laws.base import (
    FEW_EXPONENTS,
    Array,
    Design,
    Law,
    Parameter,
    coefficient,
    exponent,
    floor,
    log_sum,
    positive,
)  # fmt: skip
from experiments.analysis.laws.registry import register

if TYPE_CHECKING:
    import torch

WORTH = (1.0, 4.0, 15.0, 60.0)  # repetitions after which a token (or an excess parameter) is worn out, as tried
PASSES = 3


@register
@dataclass(frozen=True)
class Muennighoff(Law):
    """L = E + A/N'^alpha + B/D'^beta (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5-6, appendix A).

    D' = U + U R_D (1 - exp(-(D/U - 1)/R_D)) for D tokens of which U are unique, and N' in the same way of N, with R_N
    and the size that U unique tokens would deserve, U_N = min(N, (alpha A U^beta / (beta B))^(1/alpha)). R_D is
    identified by many epochs only, R_N by models larger than U_N only.
    """

    n: str = "n_params_non_embedding"
    d: str = "tokens"
    unique: str = "unique_tokens"
    name: ClassVar[str] = "muennighoff"
    title: ClassVar[str] = "data-constrained law"
    source: ClassVar[str] = "Muennighoff et al. 2023, arXiv 2305.16264, eq. 5-6"

    @property
    def quantities(self) -> tuple[Parameter, ...]:
        return (
            floor("E"),
            coefficient("A", (self.n, "alpha")),
            coefficient("B", (self.d, "beta")),
            exponent("alpha", FEW_EXPONENTS),
            exponent("beta", FEW_EXPONENTS),
            positive("R_N", 1e-3, 1e5, grid=WORTH),
            positive("R_D", 1e-3, 1e5, grid=WORTH),
        )

    @property
    def formula(self) -> str:
        return f"E + A / {self.n}'^alpha + B / {self.d}'^beta"

    def centres(self, x: Mapping[str, Array]) -> dict[str, float]:
        """Tokens are tokens: the unique ones are counted in the same unit."""
        centres = super().centres(x)
        return centres | {self.unique: centres[self.d]}

    def log_loss(self, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        return log_sum(
            theta["E"],
            theta["A"] - theta["alpha"] * self._size(theta, x),
            theta["B"] - theta["beta"] * _worth(x[self.d], x[self.unique], theta["R_D"]),
        )

    def _size(self, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """ln N'. At U_N a parameter and a unique token are worth the same: alpha A/N^alpha = beta B/U^beta."""
        import torch

        marginal = torch.log(theta["alpha"]) + theta["A"] - torch.log(theta["beta"]) - theta["B"]
        deserved = (marginal + theta["beta"] * x[self.unique]) / theta["alpha"]
        return _worth(x[self.n], torch.minimum(deserved, x[self.n]), theta["R_N"])

    def complete(self, trial: dict[str, Array], x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
        """Linear in E, A and B once it is known which models are too large: at first none is, then A and B tell."""
        import numpy as np
        import torch

        from experiments.analysis.starts import positive_least_squares

        given, inputs = ({name: torch.as_tensor(values) for name, values in side.items()} for side in (trial, x))
        data = _worth(inputs[self.d], inputs[self.unique], given["R_D"]).numpy()
        size = np.broadcast_to(x[self.n], data.shape)
        for _ in range(PASSES):
            log_basis = np.stack([np.zeros_like(data), -trial["alpha"] * size, -trial["beta"] * data], axis=-1)
            solved = positive_least_squares(log_basis, np.broadcast_to(ln_y, data.shape))
            linear = {symbol: solved[:, i : i + 1] for i, symbol in enumerate("EAB")}
            size = self._size(
                given | {name: torch.as_tensor(values) for name, values in linear.items()}, inputs
            ).numpy()
        return trial | linear

    def identifying_design(self) -> Design:
        """Up to 128 epochs of 1e8 to 1e10 unique tokens, by models on both sides of what those deserve."""
        import numpy as np
        import pandas as pd

        from experiments.analysis.designs import factorial

        table = factorial({
            self.n: np.geomspace(2e6, 2e10, 6), self.unique: np.geomspace(1e8, 1e10, 4), "epochs": [1, 2, 8, 32, 128],
        })  # fmt: skip
        table[self.d] = table.pop("epochs") * table[self.unique]
        params = {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353, "R_N": 5.31, "R_D": 15.4}
        held_out = pd.DataFrame({self.n: [2e10], self.unique: [2e10], self.d: [1.6e11]})
        return Design(table, params, noise=0.003, held_out=held_out, interval="profile")


def _worth(log_all: "torch.Tensor", log_unique: "torch.Tensor", log_half: "torch.Tensor") -> "torch.Tensor":
    """ln of what `all` is worth where only `unique` of it is new: unique (1 + R (1 - exp(-(all/unique - 1) / R)))."""
    import torch

    repeats = torch.expm1(log_all - log_unique)
    return log_unique + torch.log1p(-log_half.exp() * torch.expm1(-repeats / log_half.exp()))
