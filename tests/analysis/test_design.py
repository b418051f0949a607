"""What a fit is expected to know is what simulated studies scatter by; the next run narrows as adding it would.

Those marked slow take under a minute together.
"""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.design import (
    allocation_exponent,
    condition,
    expected,
    inflation,
    jacobian,
    log_prediction,
    narrowing,
    residual_noise,
)
from experiments.analysis.fit import fit
from experiments.analysis.laws import make_law

LAW = make_law("chinchilla")
PARAMS = {"E": 1.95, "A": 14.2, "B": 170.0, "alpha": 0.511, "beta": 0.521}


def design(sizes: int = 5, lengths: int = 5) -> pd.DataFrame:
    n, d = np.geomspace(2e3, 2e5, sizes), np.geomspace(2e5, 2e7, lengths)
    return pd.DataFrame([(x, y) for x in n for y in d], columns=["n_params_non_embedding", "tokens"])


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "noise"), [("huber", 0.003), ("lsq", 0.003), ("lad", 0.002)])
def test_expected_errors_are_those_of_simulated_studies(loss, noise):
    table, studies = design(), 120
    told = expected(LAW, PARAMS, table, noise, loss)
    rng = np.random.default_rng(0)
    clean = LAW.predict(PARAMS, table)
    fits = pd.DataFrame([
        dict(fit(LAW, table.assign(val_loss=clean * np.exp(noise * rng.standard_normal(len(table)))), loss=loss,
                 bootstrap=0).params)
        for _ in range(studies)
    ])  # fmt: skip
    a = allocation_exponent(LAW)
    assert a is not None
    found = {**{name: fits[name].std() for name in ("E", "alpha", "beta")}, "a": a(fits).std()}
    foreseen = {**{name: told.stderr_of(name) for name in ("E", "alpha", "beta")}, "a": told.stderr(a)}
    # A standard deviation from 120 draws is itself 6.5 % uncertain: three times that.
    assert foreseen == pytest.approx(found, rel=0.2)


def saturating(points: int = 24) -> pd.DataFrame:
    return pd.DataFrame({"tokens": np.geomspace(1e5, 1e8, points)})


# Per law: its parameters, a design that tells them, the noise of ln L, and what is judged.
SIMULATED = {
    "chinchilla": (LAW, PARAMS, design(), 0.003, ("E", "alpha", "beta")),
    "saturating_power_law": (
        make_law("saturating_power_law", x="tokens"), {"E": 1.9, "A": 150.0, "alpha": 0.5}, saturating(), 0.003,
        ("E", "alpha"),
    ),
    "power_law": (make_law("power_law", x="tokens"), {"A": 20.0, "alpha": 0.15}, saturating(), 0.01, ("A", "alpha")),
}  # fmt: skip


@pytest.mark.slow  # budget: a minute
@pytest.mark.parametrize("name", SIMULATED)
def test_the_width_foreseen_is_the_scatter_of_200_studies(name):
    """And of the prediction at ten times the largest input: what the plan prints before anything is trained."""
    law, params, table, noise, judged = SIMULATED[name]
    told, rng, clean = expected(law, params, table, noise), np.random.default_rng(0), law.predict(params, table)
    ahead = {column: 10.0 * float(table[column].max()) for column in law.columns}
    predicted = log_prediction(law, ahead)
    found = []
    for _ in range(200):
        y = clean * np.exp(noise * rng.standard_normal(len(table)))
        fitted = dict(fit(law, table.assign(val_loss=y), bootstrap=0).params)
        found.append({**{key: fitted[key] for key in judged}, "prediction": predicted(fitted)})
    foreseen = {**{key: told.stderr_of(key) for key in judged}, "prediction": told.stderr(predicted)}
    # A standard deviation from 200 draws is itself 5 % uncertain: three times that.
    assert dict(pd.DataFrame(found).std()) == pytest.approx(foreseen, rel=0.15)


@pytest.mark.slow
def test_the_intervals_cover_at_their_level():
    table, noise = design(), 0.003
    told, rng = expected(LAW, PARAMS, table, noise, "lsq"), np.random.default_rng(1)
    half, clean, inside = told.width(0.9) * told.stderr_of("E"), LAW.predict(PARAMS, table), 0
    for _ in range(200):
        y = clean * np.exp(noise * rng.standard_normal(len(table)))
        inside += abs(fit(LAW, table.assign(val_loss=y), loss="lsq", bootstrap=0).params["E"] - PARAMS["E"]) <= half
    assert 0.84 <= inside / 200 <= 0.97


def test_the_price_of_robustness():
    assert inflation("lsq", 1e-3, 0.01) == 1.0
    assert inflation("lad", 1e-3, 0.01) == pytest.approx(math.pi / 2)
    assert inflation("huber", 1e-9, 0.01) == pytest.approx(math.pi / 2, rel=1e-6)
    assert inflation("huber", 1.0, 0.01) == pytest.approx(1.0)
    assert inflation("huber", 0.01345, 0.01) == pytest.approx(1 / 0.95, rel=1e-3)  # the textbook's 95 % at k = 1.345


@pytest.mark.parametrize("name", ["chinchilla", "saturating_power_law"])
def test_the_condition_number_is_the_one_that_a_fit_reports(name):
    law = make_law(name, **({"x": "tokens"} if name != "chinchilla" else {}))
    table, params = design(), {key: PARAMS[key] for key in law.parameters}
    found = fit(law, table.assign(val_loss=law.predict(params, table)), loss="lsq", bootstrap=0)
    assert condition(law, params, table) == pytest.approx(found.condition, rel=1e-3)


def test_a_fixed_ratio_tells_nothing_apart():
    n = np.geomspace(2e3, 2e5, 8)
    told = expected(LAW, PARAMS, pd.DataFrame({"n_params_non_embedding": n, "tokens": 20 * n}), 0.005)
    assert told.condition > 1e9
    assert told.stderr_of("alpha") > PARAMS["alpha"]


def test_fewer_points_than_parameters_tell_nothing():
    told = expected(LAW, PARAMS, design(2, 2), 0.005)
    assert math.isinf(told.stderr_of("E"))


def test_narrowing_is_what_adding_the_run_does():
    table, more = design(3, 3), pd.DataFrame({"n_params_non_embedding": [5e5, 2e3], "tokens": [1e8, 2e5]})
    now, a = expected(LAW, PARAMS, table, 0.005, "lsq"), allocation_exponent(LAW)
    assert a is not None
    rows = jacobian(LAW, PARAMS, more)
    for i in range(len(more)):
        then = expected(LAW, PARAMS, pd.concat([table, more.iloc[[i]]]), 0.005, "lsq")
        assert narrowing(now, rows, a)[i] == pytest.approx(then.stderr(a) / now.stderr(a), rel=1e-4)
        volumes = [math.sqrt(float(np.linalg.det(each.covariance))) for each in (now, then)]
        assert narrowing(now, rows)[i] ** len(PARAMS) == pytest.approx(volumes[1] / volumes[0], rel=1e-3)


def test_residuals_of_a_fit_are_smaller_than_the_noise():
    assert residual_noise(np.array([0.01, -0.01, 0.01, -0.01]), 2) == pytest.approx(0.01 * math.sqrt(2))
    assert residual_noise(np.zeros(4), 2) > 0
