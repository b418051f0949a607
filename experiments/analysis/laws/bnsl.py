"""The broken neural scaling law: power laws that change their exponent smoothly, once or twice."""

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
    floor,
    log_sum,
    positive,
    signed,
)  # fmt: skip
from experiments.analysis.laws.registry import register

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class BrokenPowerLaw(Law):
    """L = a + b x^-c0 prod_i (1 + (x/d_i)^(1/f_i))^(-c_i f_i) (Caballero et al. 2023, arXiv 2210.14891, eq. 1).

    Break i lies at d_i, changes the exponent by c_i and is f_i decades-of-e wide. With f_i near zero it is a kink.
    """

    x: str = "flops"
    name: ClassVar[str] = "bnsl"
    title: ClassVar[str] = "broken neural scaling law, one break"
    source: ClassVar[str] = "Caballero et al. 2023, arXiv 2210.14891, eq. 1"
    breaks: ClassVar[int] = 1

    @property
    def quantities(self) -> tuple[Parameter, ...]:
        """a, b and c0, then c_i, d_i, f_i of each break."""
        wide = (0.1, 0.3, 1.0) if self.breaks == 1 else (0.2,)
        changes = (-0.4, -0.15, 0.15, 0.4)
        bends = (
            (signed(f"c{i}", 8.0, changes), positive(f"d{i}", 1e-20, 1e20, (self.x, 1.0)),
             positive(f"f{i}", 1e-3, 30.0, grid=wide))
            for i in self._numbers
        )  # fmt: skip
        slope = signed("c0", 8.0, (0.0, *FEW_EXPONENTS[:-1]))
        return (floor("a"), coefficient("b", (self.x, "c0")), slope, *(q for bend in bends for q in bend))

    @property
    def _numbers(self) -> range:
        return range(1, self.breaks + 1)

    @property
    def formula(self) -> str:
        bends = (f" * (1 + ({self.x} / d{i})^(1 / f{i}))^(-c{i} * f{i})" for i in self._numbers)
        return f"a + b / {self.x}^c0" + "".join(bends)

    def log_loss(self, theta: Mapping[str, "torch.Tensor"], x: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        import torch

        falling = theta["b"] - theta["c0"] * x[self.x]
        for i in self._numbers:
            width = theta[f"f{i}"].exp()
            beyond = (x[self.x] - theta[f"d{i}"]) / width
            falling = falling - theta[f"c{i}"] * width * torch.logaddexp(beyond, torch.zeros_like(beyond))
        return log_sum(theta["a"], falling)

    def bounds(self, x: Mapping[str, Array], ln_y: Array) -> tuple[Array, Array]:
        """Breaks are looked for among the data, the first on the lower side of the second."""
        lower, upper = super().bounds(x, ln_y)
        for i, edges in zip(self._numbers, self._thirds(x[self.x]), strict=True):
            place = self.parameters.index(f"d{i}")
            lower[place], upper[place] = edges
        return lower, upper

    def grids(self, x: Mapping[str, Array], ln_y: Array) -> dict[str, Array]:
        import numpy as np

        places = zip(self._numbers, self._thirds(x[self.x]), strict=True)
        return super().grids(x, ln_y) | {f"d{i}": np.linspace(*edges, 8 // self.breaks)[1:-1] for i, edges in places}

    def _thirds(self, log_x: Array) -> list[tuple[float, float]]:
        """Where each break may lie: equal parts of the range of ln x."""
        import numpy as np

        edges = np.linspace(log_x.min(), log_x.max(), self.breaks + 1)
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))

    def identifying_design(self) -> Design:
        return _bent(self.x, {"a": 0.6, "b": 90.0, "c0": 0.08, "c1": 0.17, "d1": 3e17, "f1": 0.5})


@register
@dataclass(frozen=True)
class TwiceBrokenPowerLaw(BrokenPowerLaw):
    """The broken neural scaling law with two breaks: nine parameters, so several points between the breaks."""

    name: ClassVar[str] = "bnsl2"
    title: ClassVar[str] = "broken neural scaling law, two breaks"
    breaks: ClassVar[int] = 2

    def identifying_design(self) -> Design:
        bends = {"c1": 0.25, "d1": 1e17, "f1": 0.4, "c2": -0.2, "d2": 1e20, "f2": 0.3}
        return _bent(self.x, {"a": 0.6, "b": 90.0, "c0": 0.08, **bends})


def _bent(x: str, params: dict[str, float]) -> Design:
    """120 runs over eight decades, quiet enough to see a bend, and a prediction a factor of ten beyond."""
    import numpy as np
    import pandas as pd

    table = pd.DataFrame({x: np.geomspace(1e14, 1e22, 120)})
    return Design(table, params, noise=0.001, held_out=pd.DataFrame({x: [1e23]}), interval="profile")
