"""Planted compute-optimal sizes: IsoFLOP slices of a known surface, and published tables where they are at hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SYMMETRIC = {"E": 1.69, "A": 400.0, "B": 400.0, "alpha": 0.31, "beta": 0.31}
CHINCHILLA = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
ASYMMETRIC = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.465, "beta": 0.155}
SHARED = Path(__file__).parents[3] / "shared" / "data"


def optimum(surface: dict[str, float], flops: float) -> float:
    """Best N at C = 6 N D, in closed form."""
    alpha, beta = surface["alpha"], surface["beta"]
    g = (alpha * surface["A"] / (beta * surface["B"])) ** (1 / (alpha + beta))
    return float(g * (flops / 6) ** (beta / (alpha + beta)))


def slices_of(
    surface: dict[str, float], budgets: int = 5, sizes: int = 15, reach: float = 16.0, noise: float = 0.0, seed: int = 0
) -> pd.DataFrame:
    """Runs at `budgets` computes from 1e17 to 1e21, sizes log-spaced up to `reach` times to either side of the best."""
    rng = np.random.default_rng(seed)
    rows = []
    for flops in np.logspace(17, 21, budgets):
        for n in optimum(surface, flops) * np.geomspace(1 / reach, reach, sizes):
            rows.append((n, flops / 6 / n, flops))
    table = pd.DataFrame(rows, columns=["n", "tokens", "flops"])
    loss = (
        surface["E"] + surface["A"] / table["n"] ** surface["alpha"] + surface["B"] / table["tokens"] ** surface["beta"]
    )
    return table.assign(val_loss=loss + noise * rng.normal(size=len(table)))


def ladder_of(surface: dict[str, float], noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """A grid of 13 sizes by 9 token counts, and so no equal computes."""
    rng = np.random.default_rng(seed)
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e10, 13), np.geomspace(3e7, 3e11, 9)))
    loss = surface["E"] + surface["A"] / n ** surface["alpha"] + surface["B"] / d ** surface["beta"]
    loss = loss + noise * rng.normal(size=len(n))
    return pd.DataFrame({"n": n, "tokens": d, "flops": 6.0 * n * d, "val_loss": loss})


def published(name: str) -> pd.DataFrame:
    """A published table that lies beside the repository; the test is skipped where it does not."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} does not lie in ../shared/data, and no published table is part of the repository")
    return pd.read_csv(path)
