"""Clark's law of routed models: bilinear in the logarithms of the size and of a saturated number of experts."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, ClassVar

from experiments.analysis.laws.base import Array, Design, Law, Parameter, log_sum, positive, signed
from experiments.analysis.laws.registry import register

if TYPE_CHECKING:
    import torch

LN_10 = log(10.0)


@register
@dataclass(frozen=True)
class Clark(Law):
    """log10 L = a log10 N + b log10 S + c log10 N log10 S + d, N the size without experts (Clark et al. 2022, arXiv
    2202.01169, eq. 2 and 6). 1/S = 1/(X - 1 + 1/(1/X_start - 1/X_max)) + 1/X_max saturates the X experts.

    X = 1 is the dense model. Without a floor, so good for the range of sizes measured; b and c trade off where few
    sizes were routed.
    """

    n: str = "n_params_active"
    experts: str = "n_expert"
    name: ClassVar[str] = "clark"
    title: ClassVar[str] = "routed language models"
    source: ClassVar[str] = "Clark et al. 2022, arXiv 2202.01169, eq. 2 and 6"

    @property
    def quantities(self) -> tuple[Parameter, ...]:
        return (
            signed("a", 4.0), signed("b", 8.0), signed("c", 4.0), signed("d", 40.0),
            positive("X_start", 0.05, 100.0, grid=(0.5, 1.0, 2.0, 4.0, 8.0)),
            positive("X_max", 1.0, 1e6, grid=(30.0, 100.0, 300.0, 1000.0, 5000.0)),
        )  # fmt: skip

    @property
    def formula(self) -> str:
        saturated = f"S({self.experts})"
        return f"10^(a log10({self.n}) + b log10({saturated}) + c log10({self.n}) log10({saturated}) + d)"

    def log_loss(self, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        size, experts = x[self.n], self._saturated(theta, x)
        mixed = theta["c"] * size * experts / LN_10
        return theta["a"] * size + theta["b"] * experts + mixed + theta["d"] * LN_10

    def _saturated(self, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """ln S; with X = 1 it is ln X_start."""
        import torch

        log_dense = theta["X_start"] - torch.log1p(-torch.exp(theta["X_start"] - theta["X_max"]))
        routed = torch.expm1(x[self.experts]) + log_dense.exp()
        return -log_sum(-torch.log(routed), -theta["X_max"])

    def bounds(self, x: Mapping[str, Array], ln_y: Array) -> tuple[Array, Array]:
        """Saturation begins in the lower half of the experts' range (in ln X) and ends beyond it."""
        lower, upper = super().bounds(x, ln_y)
        upper[4] = lower[5] = x[self.experts].max() / 2
        return lower, upper

    def complete(self, trial: dict[str, Array], x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
        """ln L is linear in a, b, c and d."""
        import numpy as np
        import torch

        from experiments.analysis.starts import least_squares

        given, inputs = ({name: torch.as_tensor(values) for name, values in side.items()} for side in (trial, x))
        experts = self._saturated(given, inputs).numpy()
        size = np.broadcast_to(x[self.n], experts.shape)
        basis = np.stack([size, experts, size * experts / LN_10, np.full_like(experts, LN_10)], axis=-1)
        solved = least_squares(basis, np.broadcast_to(ln_y, experts.shape))
        return trial | {symbol: solved[:, i : i + 1] for i, symbol in enumerate("abcd")}

    def identifying_design(self) -> Design:
        """Six sizes, each dense and routed among up to 1024 experts."""
        import numpy as np
        import pandas as pd

        from experiments.analysis.designs import factorial

        table = factorial({self.n: np.geomspace(1.5e7, 1.3e9, 6), self.experts: [2.0**k for k in range(11)]})
        params = {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "X_start": 1.847, "X_max": 314.478}
        held_out = pd.DataFrame({self.n: [2.6e9], self.experts: [256.0]})
        return Design(table, params, noise=0.001, held_out=held_out, interval="profile")
