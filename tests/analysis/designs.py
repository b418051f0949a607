"""Designs that identify a law: a table of inputs, a planted truth, the noise, one held-out run."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from experiments.analysis.laws import Law
from tests.analysis.tables import PLANTED


@dataclass(frozen=True, eq=False)
class Design:
    """A table of inputs, planted parameters, the sd of ln L, one held-out run, the kind of interval promised."""

    table: pd.DataFrame
    params: dict[str, float]
    noise: float
    held_out: pd.DataFrame
    interval: str = "bootstrap"


def _along(points: int, params: dict[str, float]) -> Design:
    table = pd.DataFrame({"flops": np.geomspace(1e8, 1e13, points)})
    return Design(table, params, 0.005, pd.DataFrame({"flops": [1e14]}))


def _surface() -> Design:
    pairs = list(product(np.geomspace(1.5e3, 1e5, 6), np.geomspace(2**17, 2**22, 5)))
    names = ["n_params_non_embedding", "tokens"]
    return Design(pd.DataFrame(pairs, columns=names), PLANTED, 0.003, pd.DataFrame([(3e5, 1e7)], columns=names))


SMALL = {  # fewer points than a law's own design: where an interval that leans on many points shows
    "power_law": _along(16, {"A": 30.0, "alpha": 0.1}),
    "saturating_power_law": _along(24, {"E": 1.9, "A": 900.0, "alpha": 0.3}),
    "chinchilla": _surface(),
}


def design_of(law: Law) -> Design:
    """The design that the law itself states, else ours."""
    stated = getattr(law, "identifying_design", None)
    return stated() if stated is not None else SMALL[law.name]
