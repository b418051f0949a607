"""Planted truths: tables of inputs, and losses drawn from a law on them."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from experiments.analysis.laws import Design, Law


def simulate(law: Law, design: Design, seed: int | None = None, y: str = "val_loss") -> pd.DataFrame:
    """The design's table with losses at its planted parameters; with a seed, noise of its size on ln L."""
    noise = 0.0 if seed is None else np.random.default_rng(seed).normal(0.0, design.noise, len(design.table))
    return design.table.assign(**{y: law.bind(design.table).predict(design.params, design.table) * np.exp(noise)})


def factorial(columns: dict[str, Sequence[float | str] | np.ndarray]) -> pd.DataFrame:
    """Every combination of the values given by column."""
    return pd.DataFrame(list(product(*columns.values())), columns=list(columns))
