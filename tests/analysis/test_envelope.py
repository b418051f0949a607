"""Approach 1: winners against brute force, edges left out, curves of runs, and refusals."""

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.envelope import envelope
from experiments.analysis.observations import Accounting, Observations, observe
from nanogpt.config import UserError
from tests.analysis.planted import CHINCHILLA, SYMMETRIC, ladder_of, optimum, slices_of


def seen(table: pd.DataFrame, **options: pd.DataFrame) -> Observations:
    return observe(table, Accounting("n"), **options)


def constant_rate_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Curves along which every point is what a run of that length would have reached."""
    parts = []
    for row in runs.to_dict(orient="records"):
        tokens = np.geomspace(3e7, row["tokens"], 40)
        loss = CHINCHILLA["E"] + CHINCHILLA["A"] / row["n"] ** CHINCHILLA["alpha"]
        loss = loss + CHINCHILLA["B"] / tokens ** CHINCHILLA["beta"]
        parts.append(
            pd.DataFrame({"id": row["id"], "tokens": tokens, "flops": 6 * row["n"] * tokens, "val_loss": loss})
        )
    return pd.concat(parts, ignore_index=True)


def test_winners_are_those_of_brute_force() -> None:
    found = envelope(seen(ladder_of(CHINCHILLA)), draws=0)
    sizes = np.geomspace(1e6, 1e10, 13)
    inside = found.table[found.table["inside"]].iloc[::100]
    for row in inside.itertuples():
        d = row.flops / 6 / sizes
        reached = (d >= 3e7) & (d <= 3e11)
        losses = (
            CHINCHILLA["E"] + CHINCHILLA["A"] / sizes ** CHINCHILLA["alpha"] + CHINCHILLA["B"] / d ** CHINCHILLA["beta"]
        )
        best = sizes[np.where(reached, losses, np.inf).argmin()]
        # Between the runs of a size its loss is interpolated, so near a tie the neighbour may win.
        assert abs(np.log(row.n / best)) <= np.log(sizes[1] / sizes[0]) * 1.001
    assert found.n_line.exponent == pytest.approx(0.28 / 0.62, abs=0.02)
    assert found.n_line.exponent + found.d_line.exponent == pytest.approx(1.0)
    assert found.n_line.at(1e19) == pytest.approx(optimum(CHINCHILLA, 1e19), rel=0.15)


def test_computes_without_a_rival_on_both_sides_are_left_out() -> None:
    found = envelope(seen(ladder_of(SYMMETRIC)), draws=0)
    outside = found.table[~found.table["inside"]]
    assert 0 < found.refused < 1
    assert found.refused == pytest.approx(len(outside) / len(found.table))
    assert found.n_line.points == int(found.table["inside"].sum())


def test_curves_of_a_constant_rate_give_the_same_line() -> None:
    runs = ladder_of(CHINCHILLA)
    runs = runs[runs["tokens"] > 2e11].reset_index(drop=True)
    runs["id"] = [f"run{i}" for i in range(len(runs))]
    found = envelope(seen(runs, curves=constant_rate_curves(runs)), draws=0)
    assert found.observations.source == "curves"
    assert found.n_line.exponent == pytest.approx(0.28 / 0.62, abs=0.02)


def test_points_of_one_curve_share_their_noise() -> None:
    runs = ladder_of(CHINCHILLA).query("tokens > 2e11").reset_index(drop=True)
    runs["id"] = [f"run{i}" for i in range(len(runs))]
    table = seen(runs, curves=constant_rate_curves(runs)).table
    assert (table["run"] == table["path"]).all()
    assert table["run"].nunique() == 13


def test_the_interval_covers_the_planted_exponent() -> None:
    inside = []
    for seed in range(20):
        low, high = envelope(seen(ladder_of(SYMMETRIC, 0.01, seed)), draws=60, computes=300, seed=seed).n_line.conf_int(
            0.9
        )
        inside.append(low <= 0.5 <= high)
    assert np.mean(inside) >= 0.8


def test_sizes_with_one_token_count_each_make_no_curve() -> None:
    with pytest.raises(UserError, match="needs curves of loss over compute: 3 sizes with two token counts each"):
        envelope(seen(slices_of(SYMMETRIC)))


def test_one_best_size_everywhere_is_refused() -> None:
    table = ladder_of(SYMMETRIC)
    with pytest.raises(UserError, match=r"only \d of 4 sizes are best at some compute, and a line needs 3"):
        envelope(seen(table[table["n"] < 1.1e7]))
