"""Sums of power terms: the power law, the saturating power law, Chinchilla's and Gadre's."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.analysis.laws.base import Design
from experiments.analysis.laws.registry import register
from experiments.analysis.laws.terms import PowerTerms, Term


@register
@dataclass(frozen=True)
class PowerLaw(PowerTerms):
    """L = A * x^-alpha: a straight line on log-log axes (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1-1.3)."""

    x: str = "flops"
    name: ClassVar[str] = "power_law"
    title: ClassVar[str] = "power law"
    source: ClassVar[str] = "Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1-1.3"

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("A", (("alpha", self.x),)),)

    @property
    def formula(self) -> str:
        return f"A / {self.x}^alpha"

    def identifying_design(self) -> Design:
        return _along(self.x, {"A": 30.0, "alpha": 0.05})


@register
@dataclass(frozen=True)
class SaturatingPowerLaw(PowerTerms):
    """L = E + A * x^-alpha: a power law onto a floor E (Henighan et al. 2020, arXiv 2010.14701, eq. 1.1)."""

    x: str = "flops"
    name: ClassVar[str] = "saturating_power_law"
    title: ClassVar[str] = "saturating power law"
    source: ClassVar[str] = "Henighan et al. 2020, arXiv 2010.14701, eq. 1.1"

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("E"), Term("A", (("alpha", self.x),)))

    @property
    def formula(self) -> str:
        return f"E + A / {self.x}^alpha"

    def identifying_design(self) -> Design:
        return _along(self.x, {"E": 1.7, "A": 2400.0, "alpha": 0.16})


@register
@dataclass(frozen=True)
class Chinchilla(PowerTerms):
    """L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, arXiv 2203.15556, eq. 10, approach 3).

    Assumes every run's learning rate was decayed to its own length and its other settings are near their best.
    """

    n: str = "n_params_non_embedding"
    d: str = "tokens"
    name: ClassVar[str] = "chinchilla"
    title: ClassVar[str] = "Chinchilla law"
    source: ClassVar[str] = "Hoffmann et al. 2022, arXiv 2203.15556, eq. 10"

    @property
    def terms(self) -> tuple[Term, ...]:
        return (Term("E"), Term("A", (("alpha", self.n),)), Term("B", (("beta", self.d),)))

    @property
    def formula(self) -> str:
        return f"E + A / {self.n}^alpha + B / {self.d}^beta"

    def identifying_design(self) -> Design:
        return over_sizes(self.n, self.d, {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28})


@register
@dataclass(frozen=True)
class Gadre(PowerTerms):
    """L = E + (a M^eta + b M^-eta) C^-eta with C = 6 N D and M = D / N: over-training at one exponent (Gadre et al.
    2024, arXiv 2403.08540, eq. 4). In N and D: E + a 6^-eta N^-2eta + b 6^-eta D^-2eta."""

    n: str = "n_params"
    d: str = "tokens"
    name: ClassVar[str] = "gadre"
    title: ClassVar[str] = "over-training law"
    source: ClassVar[str] = "Gadre et al. 2024, arXiv 2403.08540, eq. 4"

    @property
    def terms(self) -> tuple[Term, ...]:
        six = (("eta", 6.0),)
        twice_n, twice_d = (("eta", self.n), ("eta", self.n)), (("eta", self.d), ("eta", self.d))
        return (Term("E"), Term("a", twice_n, six), Term("b", twice_d, six))

    @property
    def formula(self) -> str:
        return f"E + a * 6^-eta / {self.n}^(2*eta) + b * 6^-eta / {self.d}^(2*eta)"

    def identifying_design(self) -> Design:
        return over_sizes(self.n, self.d, {"E": 1.51, "a": 141.0, "b": 190.0, "eta": 0.121})


def _along(x: str, params: dict[str, float]) -> Design:
    """40 runs over five decades of one input, and a prediction a factor of ten beyond."""
    import numpy as np
    import pandas as pd

    table = pd.DataFrame({x: np.geomspace(1e15, 1e20, 40)})
    return Design(table, params, noise=0.003, held_out=pd.DataFrame({x: [1e21]}))


def over_sizes(n: str, d: str, params: dict[str, float]) -> Design:
    """8 x 8 runs over three decades of size and of data, and a prediction twice beyond both."""
    import numpy as np
    import pandas as pd

    from experiments.analysis.designs import factorial

    table = factorial({n: np.geomspace(1e7, 1e10, 8), d: np.geomspace(2e8, 2e11, 8)})
    return Design(table, params, noise=0.003, held_out=pd.DataFrame({n: [2e10], d: [4e11]}))
