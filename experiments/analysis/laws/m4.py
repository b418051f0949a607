"""M4: a sigmoid in ln x, from the loss of an untrained model down to a floor, with a power law between."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from experiments.analysis.laws.base import Array, Design, Law, Parameter, exponent, floor, log_sum, positive
from experiments.analysis.laws.registry import register

if TYPE_CHECKING:
    import torch

NEWTON = 12  # steps to the root of a smooth monotone function with slopes between 1 and alpha, from its asymptotes


@register
@dataclass(frozen=True)
class M4(Law):
    """(L - E) / (L_0 - L)^alpha = beta x^-c, solved for L (Alabdulmohsin et al. 2022, arXiv 2209.06640, eq. 4, M4).

    E is the loss with x unlimited, L_0 the loss of a model that has learnt nothing. Far from L_0 it is a power law
    of exponent c; alpha shapes the departure from L_0 and is identified only by points close to it.
    """

    x: str = "flops"
    name: ClassVar[str] = "m4"
    title: ClassVar[str] = "M4 estimator"
    source: ClassVar[str] = "Alabdulmohsin et al. 2022, arXiv 2209.06640, eq. 4"

    @property
    def quantities(self) -> tuple[Parameter, ...]:
        return (
            floor("E"),
            Parameter("L_0", log=True, of_loss=True, lower=1.0, upper=10.0),
            exponent("alpha"),
            positive("beta", 1e-12, 1e12, (self.x, "c")),
            exponent("c"),
        )

    @property
    def formula(self) -> str:
        return f"E + beta / {self.x}^c * (L_0 - L)^alpha"

    def log_loss(self, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """With L = E + (L_0 - E) s(u), s the logistic function, the equation is ln s(u) - alpha ln s(-u) = target."""
        import torch

        log_range = theta["L_0"] + torch.log1p(-torch.exp(theta["E"] - theta["L_0"]))
        target = theta["beta"] - theta["c"] * x[self.x] - (1.0 - theta["alpha"]) * log_range
        u = _root(target, theta["alpha"])
        return log_sum(theta["E"] + _log_logistic(-u), theta["L_0"] + _log_logistic(u))

    def bounds(self, x: Mapping[str, Array], ln_y: Array) -> tuple[Array, Array]:
        """The floor lies below the geometric middle of the losses, L_0 above it."""
        lower, upper = super().bounds(x, ln_y)
        lower[1] = upper[0] = (ln_y.min() + ln_y.max()) / 2
        lower[2] = 1e-3  # at zero the equation has no root beyond L_0
        return lower, upper

    def grids(self, x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
        import numpy as np

        shares = np.array([1e-3, 0.3, 0.6, 0.8, 0.9, 0.97, 0.995, 0.9995])
        return {"E": ln_y.min() + np.log(shares), "L_0": ln_y.max() - np.log(shares[2:])}

    def complete(self, trial: dict[str, Array], x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
        """ln(L - E) is linear in alpha, ln beta and c."""
        import numpy as np

        from experiments.analysis.starts import least_squares

        above = ln_y + np.log1p(-np.exp(trial["E"] - ln_y))
        below = trial["L_0"] + np.log1p(-np.exp(ln_y - trial["L_0"]))
        basis = np.stack(np.broadcast_arrays(below, np.ones_like(below), -x[self.x]), axis=-1)
        alpha, beta, c = np.split(least_squares(basis, above), 3, axis=-1)
        return trial | {"alpha": alpha, "beta": beta, "c": c}

    def identifying_design(self) -> Design:
        """60 runs over seven decades, from nearly untrained to nearly the floor."""
        import numpy as np
        import pandas as pd

        table = pd.DataFrame({self.x: np.geomspace(1e12, 1e19, 60)})
        params = {"E": 1.7, "L_0": 7.0, "alpha": 0.8, "beta": 3e5, "c": 0.35}
        return Design(table, params, noise=0.002, held_out=pd.DataFrame({self.x: [1e20]}), interval="profile")


def _log_logistic(u: "torch.Tensor") -> "torch.Tensor":
    import torch

    return -torch.logaddexp(-u, torch.zeros_like(u))


def _root(target: "torch.Tensor", alpha: "torch.Tensor") -> "torch.Tensor":
    """u with ln s(u) - alpha ln s(-u) = target. The last two of the Newton steps carry the derivatives: one step at a
    root has the root's first derivative, a second step its second."""
    import torch

    def step(u: torch.Tensor, target: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        missing = _log_logistic(u) - alpha * _log_logistic(-u) - target
        return u - missing / (torch.sigmoid(-u) + alpha * torch.sigmoid(u))

    flat_target, flat_alpha = target.detach(), alpha.detach()
    u = torch.where(flat_target < 0, flat_target, flat_target / flat_alpha)
    for _ in range(NEWTON):
        u = step(u, flat_target, flat_alpha)
    return step(step(u, target, alpha), target, alpha)
