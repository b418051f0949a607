"""The compute frontier: the envelope's definition, and the closed-form optimum against brute force.

Slow part, more tables of one ratio: about 5 s.
"""

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.fit import fit
from experiments.analysis.frontier import compute_optimal, fitted_frontier, lower_envelope
from experiments.analysis.laws import Chinchilla
from experiments.analysis.tablefit import Prepared
from experiments.analysis.tablewords import allocation_text
from nanogpt.config import UserError
from tests.analysis.tables import planted_runs, with_diverged


def test_envelope_is_what_no_cheaper_run_beats() -> None:
    runs = with_diverged(planted_runs(noise=0.01), 0)
    kept = lower_envelope(runs)
    done = runs[runs["status"] == "completed"]
    for row in done.itertuples():
        beaten = ((done["flops"] <= row.flops) & (done["val_loss"] < row.val_loss)).any()
        assert (row.id in set(kept["id"])) == (not beaten)
    assert kept["val_loss"].is_monotonic_decreasing


def test_compute_optimal_sizes_match_brute_force() -> None:
    result = fit("chinchilla", planted_runs(noise=0.001), bootstrap=50)
    found = compute_optimal(result, np.array([1e11, 1e13]), flops_per_nd=7.0)
    for row in found.table.itertuples():
        n = np.geomspace(row.n / 3, row.n * 3, 200001)
        losses = result.law.predict(result.params, {"n_params_non_embedding": n, "tokens": row.flops / 7.0 / n})
        assert n[losses.argmin()] == pytest.approx(row.n, rel=1e-3)
        assert losses.min() == pytest.approx(row.loss, rel=1e-12)
        assert row.n * row.d * 7.0 == pytest.approx(row.flops)
        assert row.n_lower < row.n < row.n_upper
        assert row.d_lower < row.d < row.d_upper
    slope = np.diff(np.log(found.table["n"]))[0] / np.log(100.0)
    assert slope == pytest.approx(found.a)
    assert found.a + found.b == pytest.approx(1.0)


def test_compute_optimal_needs_a_chinchilla_fit() -> None:
    with pytest.raises(UserError, match="needs a chinchilla fit"):
        compute_optimal(fit("power_law", planted_runs(), bootstrap=0), 1e12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 5))])
def test_a_fixed_ratio_is_allocated_nothing_in_words_and_without_warnings(seed: int) -> None:
    n = np.geomspace(1e6, 1e9, 12)
    noise = np.exp(0.002 * np.random.default_rng(seed).standard_normal(12))
    runs = pd.DataFrame({"N": n, "D": 20 * n, "L": (1.7 + 300 * n**-0.33 + 900 * (20 * n) ** -0.31) * noise})
    result = fit(Chinchilla(n="N", d="D"), runs, y="L", bootstrap=100)
    with pytest.raises(UserError, match=r"do not tell how to divide compute between N and D: .*(alpha|beta|A|B) "):
        compute_optimal(result, 1e20)
    with pytest.raises(UserError, match="do not tell how to divide"):
        compute_optimal(fit(Chinchilla(n="N", d="D"), runs, y="L", bootstrap=0), 1e20)
    prepared = Prepared("t.csv", runs, pd.DataFrame(), {}, ())
    said = allocation_text(result, prepared)
    assert said.startswith("no compute-optimal N and D: these runs do not tell")
    assert "nan" not in said
    assert "inf" not in said


def test_fitted_frontier_stays_inside_the_sizes_that_were_trained() -> None:
    runs = planted_runs(noise=0.001)
    result = fit("chinchilla", runs, bootstrap=20)
    line = fitted_frontier(result, runs, np.geomspace(1e9, 1e14, 30))
    assert line is not None
    assert line["n_params_non_embedding"].between(1536 * 0.999, 98304 * 1.001).all()
    assert line["predicted"].is_monotonic_decreasing
    assert (line["lower"] <= line["upper"]).all()


def test_fitted_frontier_of_a_law_without_compute_is_none() -> None:
    from experiments.analysis.laws import PowerLaw

    result = fit(PowerLaw(x="tokens"), planted_runs(), bootstrap=0)
    assert fitted_frontier(result, pd.DataFrame(), np.array([1e9])) is None
