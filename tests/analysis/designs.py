"""Designs of fewer points than a law's own: where an interval that leans on many points shows."""

from itertools import product

import numpy as np
import pandas as pd

from experiments.analysis.laws import Design
from tests.analysis.tables import PLANTED


def _along(points: int, params: dict[str, float]) -> Design:
    table = pd.DataFrame({"flops": np.geomspace(1e8, 1e13, points)})
    return Design(table, params, 0.005, pd.DataFrame({"flops": [1e14]}))


def _surface() -> Design:
    pairs = list(product(np.geomspace(1.5e3, 1e5, 6), np.geomspace(2**17, 2**22, 5)))
    names = ["n_params_non_embedding", "tokens"]
    return Design(pd.DataFrame(pairs, columns=names), PLANTED, 0.003, pd.DataFrame([(3e5, 1e7)], columns=names))


SMALL = {
    "power_law": _along(16, {"A": 30.0, "alpha": 0.1}),
    "saturating_power_law": _along(24, {"E": 1.9, "A": 900.0, "alpha": 0.3}),
    "chinchilla": _surface(),
}
