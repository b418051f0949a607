"""One surface for several variants: shared exponents, and how much more each makes of a parameter or a token."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from experiments.analysis.laws.base import (
    Array,
    Columns,
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


@register
@dataclass(frozen=True)
class SharedExponents(Law):
    """L = E + A/(rho_N N)^alpha + B/(rho_D D)^beta with rho_N, rho_D per group (Volkova et al. 2026, arXiv 2602.07712).

    For comparing architectures or optimizers, where separate fits are ill-conditioned. The first group of the table is
    the reference, with both multipliers at 1; a group with rho_D = 2 learns as much from a token as it from two.
    """

    n: str = "n_params_non_embedding"
    d: str = "tokens"
    group: str = "group"
    groups: tuple[str, ...] = ()
    name: ClassVar[str] = "shared_exponent"
    title: ClassVar[str] = "shared exponents with efficiency multipliers"
    source: ClassVar[str] = "Volkova et al. 2026, arXiv 2602.07712"
    labels: ClassVar[tuple[str, ...]] = ("group",)

    @property
    def levels(self) -> Mapping[str, tuple[str, ...]]:
        return {self.group: self.groups}

    def bind(self, table: Columns) -> Self:
        import numpy as np

        return replace(self, groups=tuple(dict.fromkeys(str(value) for value in np.asarray(table[self.group]))))

    @property
    def quantities(self) -> tuple[Parameter, ...]:
        surface = (
            floor("E"), coefficient("A", (self.n, "alpha")), coefficient("B", (self.d, "beta")),
            exponent("alpha"), exponent("beta"),
        )  # fmt: skip
        return (*surface, *(positive(symbol, 1e-6, 1e6) for symbol in (*self._rhos("N"), *self._rhos("D"))))

    def _rhos(self, of: str) -> list[str]:
        """The multipliers of one input, without the reference's."""
        return [f"rho_{of}[{group}]" for group in self.groups[1:]]

    @property
    def formula(self) -> str:
        return f"E + A / (rho_N[{self.group}] * {self.n})^alpha + B / (rho_D[{self.group}] * {self.d})^beta"

    def log_loss(self, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        import torch

        reference = torch.zeros_like(theta["E"])
        rho_n, rho_d = (
            torch.cat([reference, *(theta[rho] for rho in self._rhos(of))], dim=-1)[..., x[self.group]] for of in "ND"
        )
        size = theta["A"] - theta["alpha"] * (x[self.n] + rho_n)
        return log_sum(theta["E"], size, theta["B"] - theta["beta"] * (x[self.d] + rho_d))

    def complete(self, trial: dict[str, Array], x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
        """The loss is linear in E and in a coefficient per group, A rho_N^-alpha or B rho_D^-beta."""
        import numpy as np

        from experiments.analysis.starts import NONE, positive_least_squares

        member = np.where(np.arange(len(self.groups))[:, None] == x[self.group], 0.0, NONE)
        by_group = [-trial[power][None] * x[column] + member[:, None]
                    for power, column in (("alpha", self.n), ("beta", self.d))]  # fmt: skip
        log_basis = np.concatenate([np.zeros_like(by_group[0][:1]), *by_group])
        solved = positive_least_squares(np.moveaxis(log_basis, 0, -1), np.broadcast_to(ln_y, log_basis.shape[1:]))
        whole = trial | {"E": solved[:, :1]}
        for of, symbol, power, first in (("N", "A", "alpha", 1), ("D", "B", "beta", 1 + len(self.groups))):
            own = solved[:, first : first + len(self.groups)]
            rhos = (own[:, :1] - own[:, 1:]) / trial[power]
            whole |= {symbol: own[:, :1]} | {rho: rhos[:, i : i + 1] for i, rho in enumerate(self._rhos(of))}
        return whole

    def identifying_design(self) -> Design:
        """A product grid of sizes and tokens for each of two groups."""
        import numpy as np
        import pandas as pd

        from experiments.analysis.designs import factorial

        groups = ["baseline", "variant"]
        table = factorial({self.group: groups, self.n: np.geomspace(1e7, 1e10, 7), self.d: np.geomspace(2e8, 2e11, 7)})
        params = {
            "E": 1.69,
            "A": 406.4,
            "B": 410.7,
            "alpha": 0.34,
            "beta": 0.28,
            "rho_N[variant]": 1.2,
            "rho_D[variant]": 1.6,
        }
        held_out = pd.DataFrame({self.group: groups[1:], self.n: [2e10], self.d: [4e11]})
        return Design(table, params, noise=0.003, held_out=held_out, interval="profile")
