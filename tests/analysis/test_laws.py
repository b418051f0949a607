"""Every law of the registry, old or new: it recovers planted parameters, predicts its formula, and has units."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from experiments.analysis.fit import fit
from experiments.analysis.laws import LAWS, Chinchilla, Law, PowerLaw, Term, make_law
from nanogpt.config import UserError

ALL = [pytest.param(make_law(name), id=name) for name in LAWS]
PLANTED = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # Hoffmann et al. 2022, appendix D.3


def planted(law: Law, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """A product grid over the law's columns with its loss at `PLANTED`."""
    side = np.geomspace(1e7, 1e10, 8 if len(law.columns) > 1 else 40)
    table = pd.DataFrame(list(product(side, repeat=len(law.columns))), columns=list(law.columns))
    rng = np.random.default_rng(seed)
    table["val_loss"] = law.predict(PLANTED, table) * np.exp(rng.normal(0.0, noise, len(table)))
    return table


@pytest.mark.parametrize("law", ALL)
@pytest.mark.parametrize("loss", ["huber", "lad", "lsq"])
def test_recovers_planted_parameters_without_noise(law: Law, loss: str) -> None:
    result = fit(law, planted(law), loss=loss, bootstrap=0)
    assert result.converged
    for name, value in result.params.items():
        assert value == pytest.approx(PLANTED[name], rel=1e-6), name


@pytest.mark.parametrize("law", ALL)
def test_intervals_cover_planted_parameters_under_noise(law: Law) -> None:
    result = fit(law, planted(law, noise=0.005), bootstrap=200)
    intervals = result.conf_int(0.99)
    for name in law.parameters:
        lower, upper = intervals.loc[name]
        assert lower < PLANTED[name] < upper, name
        assert upper - lower < 0.8 * PLANTED[name], f"{name}: an interval this wide would cover anything"


@pytest.mark.parametrize("law", ALL)
def test_prediction_is_the_formula(law: Law) -> None:
    table = planted(law).head(3)
    formula = law.formula.replace("^", "**")
    by_hand = [eval(formula, {}, {**PLANTED, **row}) for row in table.to_dict(orient="records")]
    np.testing.assert_allclose(law.predict(PLANTED, table), by_hand, rtol=1e-12)


@pytest.mark.parametrize("law", ALL)
def test_gradient_from_the_design_tensor_is_the_numerical_one(law: Law) -> None:
    from experiments.analysis.solver import Problem, _expand, huber, residuals

    table = planted(law, noise=0.01)
    centres = {name: float(np.log(table[name]).mean()) for name in law.columns}
    size = len(law.parameters)
    ln_y = np.log(table["val_loss"].to_numpy())
    box = np.full(size, 50.0)
    problem = Problem(law.design(table, centres), ln_y, -box, box, len(law.coefficients))
    theta = np.linspace(-0.3, 0.6, size)[None]
    weights = np.ones((1, len(table)))
    exact = _expand(problem, theta, weights, 1.0)

    def gradient(at: np.ndarray) -> np.ndarray:
        return _expand(problem, at, weights, 1.0).gradient[0]

    for j in range(size):
        h = np.zeros((1, size))
        h[0, j] = 1e-6
        up, down = (huber(residuals(problem, theta + s * h), weights, 1.0)[0] for s in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(exact.gradient[0, j], rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(
            (gradient(theta + h) - gradient(theta - h)) / 2e-6, exact.hessian[0, j], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("law", ALL)
def test_symbols_units_and_source(law: Law) -> None:
    assert law.source
    assert set(law.parameters) == set(law.coefficients) | set(law.exponents)
    assert all(law.unit(symbol) == "no unit" for symbol in law.exponents)
    assert all(law.unit(symbol).startswith("nats/token") for symbol in law.coefficients)


def test_columns_are_chosen_when_the_law_is_made() -> None:
    assert make_law("chinchilla").columns == ("n_params_non_embedding", "tokens")
    assert make_law("chinchilla", n="n_params").columns == ("n_params", "tokens")
    assert PowerLaw(x="tokens").columns == ("tokens",)


def test_unknown_law_and_unknown_input_name_the_right_ones() -> None:
    with pytest.raises(UserError, match="did you mean 'chinchilla'"):
        make_law("chinchila")
    with pytest.raises(UserError, match="its inputs: n, d"):
        make_law("chinchilla", x="flops")


def test_a_new_law_is_its_terms_alone() -> None:
    """Shared exponents need nothing further: alpha once over N and once over D."""

    class SharedExponent(Chinchilla):
        name = "shared"

        @property
        def terms(self) -> tuple[Term, ...]:
            return (Term("E"), Term("A", (("alpha", self.n),)), Term("B", (("alpha", self.d),)))

    law = SharedExponent()
    assert law.parameters == ("E", "A", "B", "alpha")
    result = fit(law, planted(law), bootstrap=0)
    assert result.params == pytest.approx({name: PLANTED[name] for name in law.parameters}, rel=1e-6)
